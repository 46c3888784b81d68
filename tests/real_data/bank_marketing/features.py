"""Feast definitions for the telemarketing calls: what was known of a client, and the economy on the day of the call."""

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, String

client = Entity(name="client", join_keys=["client_id"], value_type=ValueType.INT64)
market = Entity(name="market", join_keys=["market"], value_type=ValueType.STRING)

client_profile = FeatureView(
    name="client_profile",
    entities=[client],
    schema=[
        Field(name="client_id", dtype=Int64),
        Field(name="age", dtype=Int64),
        *(
            Field(name=name, dtype=String)
            for name in ("job", "marital", "education", "default", "housing", "loan", "contact", "poutcome")
        ),
        Field(name="campaign", dtype=Int64),
        Field(name="pdays", dtype=Int64),
        Field(name="previous", dtype=Int64),
    ],
    source=FileSource(path="data/clients.parquet", timestamp_field="event_timestamp"),
)

economy = FeatureView(
    name="economy",
    entities=[market],
    schema=[
        Field(name="market", dtype=String),
        *(
            Field(name=name, dtype=Float64)
            for name in ("emp_var_rate", "cons_price_idx", "cons_conf_idx", "euribor3m", "nr_employed")
        ),
    ],
    source=FileSource(path="data/economy.parquet", timestamp_field="event_timestamp"),
)

bank_marketing = FeatureService(name="bank_marketing", features=[client_profile, economy])

"""Feast definitions for the loan applications: a borrower's credit history and the statistics of a zip code."""

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Int64, String

borrower = Entity(name="borrower", join_keys=["dob_ssn"], value_type=ValueType.STRING)
area = Entity(name="area", join_keys=["zipcode"], value_type=ValueType.INT64)

# No ttl on either view: both tables are one snapshot, taken 4 months to 4 years before the loans, and a ttl shorter than
# that would silently turn every feature into a null.
credit_history = FeatureView(
    name="credit_history",
    entities=[borrower],
    schema=[
        Field(name="dob_ssn", dtype=String),
        Field(name="credit_card_due", dtype=Int64),
        Field(name="mortgage_due", dtype=Int64),
        Field(name="student_loan_due", dtype=Int64),
        Field(name="vehicle_loan_due", dtype=Int64),
        Field(name="hard_pulls", dtype=Int64),
        Field(name="missed_payments_2y", dtype=Int64),
        Field(name="missed_payments_1y", dtype=Int64),
        Field(name="missed_payments_6m", dtype=Int64),
        Field(name="bankruptcies", dtype=Int64),
    ],
    source=FileSource(
        path="data/credit_history.parquet", timestamp_field="event_timestamp", created_timestamp_column="created_timestamp"
    ),
)

zipcode_features = FeatureView(
    name="zipcode_features",
    entities=[area],
    schema=[
        Field(name="zipcode", dtype=Int64),
        Field(name="state", dtype=String),
        Field(name="location_type", dtype=String),
        Field(name="tax_returns_filed", dtype=Int64),
        Field(name="population", dtype=Int64),
        Field(name="total_wages", dtype=Int64),
    ],
    source=FileSource(
        path="data/zipcode_table.parquet", timestamp_field="event_timestamp", created_timestamp_column="created_timestamp"
    ),
)

credit_scoring = FeatureService(name="credit_scoring", features=[credit_history, zipcode_features])

"""Simulated transactions, training data from a feature store, and its split in time, as pipeline components."""

from typing import NamedTuple

from kfp import dsl

from modelyard.components.interface import component


@component("features")
def simulate_transactions(
    feature_repo: dsl.Output[dsl.Artifact],
    entity_rows: dsl.Output[dsl.Dataset],
    customers: int = 5000,
    terminals: int = 10000,
    days: int = 183,
    start_date: str = "2018-04-01",
    seed: int = 0,
    drift: str = "none",
    drift_day: int = 0,
) -> NamedTuple("Outputs", [("feature_repo_uri", str), ("entity_rows_uri", str), ("transactions", int), ("frauds", int)]):
    """Simulates card transactions, some of them fraudulent, with their features in a Feast feature repo.

    The population and the kinds of fraud follow Le Borgne et al., Reproducible Machine Learning for Credit Card Fraud
    Detection (2022). The repo's feature service is called fraud_detection; the label is is_fraud; the columns amount, night
    and weekend of the entity rows come with each transaction and belong into the entity_features of fetch_features.

    Args:
        customers: Number of card holders.
        terminals: Number of payment terminals.
        days: Length of the period in days.
        start_date: First day, an ISO date.
        seed: Equal seeds give equal transactions.
        drift: What changes from drift_day on: none, spending (amounts half as high again), new_fraud (test payments with stolen
            cards) or both.
        drift_day: Day on which the drift begins, counted from 0.

    Returns:
        feature_repo: The Feast feature repo, applied, readable from wherever it is copied to.
        entity_rows: The labelled transactions, a Parquet file.
        feature_repo_uri: Where the feature repo is.
        entity_rows_uri: Where the entity rows are.
        transactions: Number of transactions.
        frauds: Number of fraudulent transactions.
    """
    from modelyard.components.features.simulated_repo import write_simulated_repo
    from modelyard.components.features.simulation import Scale

    scale = Scale(customers, terminals, days, start_date, seed, drift, drift_day)
    simulated = write_simulated_repo(feature_repo.path, entity_rows.path, scale)
    feature_repo.metadata["feature_service"] = "fraud_detection"
    entity_rows.metadata["rows"] = simulated.transactions
    entity_rows.metadata["positives"] = simulated.frauds
    return (feature_repo.uri, entity_rows.uri, simulated.transactions, simulated.frauds)


@component("features")
def fetch_features(
    training_data: dsl.Output[dsl.Dataset],
    feature_repo_uri: str,
    entity_rows_uri: str,
    feature_service: str,
    label: str,
    timestamp_column: str = "event_timestamp",
    start: str = "",
    end: str = "",
    entity_features: list = [],
    kept_columns: list = [],
    full_feature_names: bool = False,
    filter_by_created_timestamp: bool = True,
) -> NamedTuple("Outputs", [("rows", int), ("digest", str)]):
    """Fetches training data from a Feast feature repo: each labelled row with its features as of its own moment.

    Repos on files (Feast's file, dask and duckdb stores) are joined as of each moment by this package; for every other
    store (Spark, BigQuery, Snowflake, and so on) Feast's own is called. Either way each row comes back exactly once, or the
    step fails. Feast's ray store is refused, since it ignores the ttl.

    Args:
        feature_repo_uri: Folder of an applied Feast feature repo: a path, or a URI of scheme file, s3, gs or minio.
        entity_rows_uri: Parquet or CSV file, or folder of Parquet files, with join keys, moments and labels: a path or such
            a URI.
        feature_service: Name of the feature service in the repo.
        label: Column of the entity rows to predict, 0 or 1.
        timestamp_column: Column of the entity rows with the moment of each; UTC if it has no time zone.
        start: First moment to include, an ISO date or time; empty for no limit.
        end: First moment to leave out, an ISO date or time; empty for no limit.
        entity_features: Further columns of the entity rows to use as features: what comes with a request at prediction time.
        kept_columns: Further columns of the entity rows that stay in the dataset without being features, to slice, cluster or
            group by.
        full_feature_names: Whether features are named view__feature, for services whose views share names.
        filter_by_created_timestamp: Whether feature rows that were created after the moment are left out, so that later
            corrections do not leak into the past.

    Returns:
        training_data: The dataset, in the order of the entity rows, with the roles of its columns and its lineage.
        rows: Number of its rows.
        digest: Digest of its file.
    """
    from modelyard.components.features.fetching import Request, fetch_training_data

    fetched = fetch_training_data(
        Request(
            feature_repo_uri,
            entity_rows_uri,
            feature_service,
            label,
            timestamp_column,
            start,
            end,
            tuple(entity_features),
            tuple(kept_columns),
            full_feature_names,
            filter_by_created_timestamp,
        ),
        training_data.path,
    )
    training_data.metadata["rows"] = fetched.rows
    training_data.metadata["digest"] = fetched.digest
    training_data.metadata["feature_repo_uri"] = feature_repo_uri
    training_data.metadata["entity_rows_uri"] = entity_rows_uri
    training_data.metadata["feature_service"] = feature_service
    return (fetched.rows, fetched.digest)


@component("features")
def split_dataset(
    dataset: dsl.Input[dsl.Dataset],
    train: dsl.Output[dsl.Dataset],
    validation: dsl.Output[dsl.Dataset],
    test: dsl.Output[dsl.Dataset],
    test_days: float = 0.0,
    validation_days: float = 0.0,
    gap_days: float = 0.0,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.1,
    group_by: str = "",
) -> NamedTuple("Outputs", [("train_rows", int), ("validation_rows", int), ("test_rows", int)]):
    """Splits a dataset by time into training, validation and test data, the newest rows last.

    Fails if a part would be empty or hold one class only.

    Args:
        dataset: The dataset, as fetch_features writes it.
        test_days: Length of the test data in days, counted back from the newest row; 0 to go by test_fraction.
        validation_days: Length of the validation data in days, before the gap before the test data; 0 to go by
            validation_fraction.
        gap_days: Days left out before the validation data and before the test data, because labels arrive late.
        test_fraction: Share of the rows that become test data, where test_days is 0.
        validation_fraction: Share of the rows that become validation data, where validation_days is 0.
        group_by: Column whose values each go into one part only, such as customer_id; empty for none. A group that time
            spreads over several parts is assigned to one of them, and its rows in the others are left out.

    Returns:
        train: The training data.
        validation: The validation data.
        test: The test data.
        train_rows: Rows of the training data.
        validation_rows: Rows of the validation data.
        test_rows: Rows of the test data.
    """
    from modelyard.components.features.splitting import Split, split_dataset

    rows = split_dataset(
        dataset.path,
        train.path,
        validation.path,
        test.path,
        Split(test_days, validation_days, gap_days, test_fraction, validation_fraction, group_by),
    )
    for part, count in zip((train, validation, test), rows):
        part.metadata["rows"] = count
    return rows

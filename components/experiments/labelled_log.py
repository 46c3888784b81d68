"""The prediction log of an experiment joined with the labels that came later, and what does not fit in either.

A label belongs to a prediction by ``request_id``, and by ``row`` where a request has several. Every prediction needs one, the
0s too: where only the positives are reported, such as chargebacks, write the 0s once the delay has passed.

Only predictions whose labels have had time to arrive count. Positives are often known first (a chargeback comes within days,
its absence is certain after months), so that a rate among the labels that happen to be there would be too high.
"""

import os
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from modelyard.components.errors import InvalidInput
from modelyard.components.storage import uris

BY_KEY, BY_REQUEST = "key", "request"
# Beyond these shares a fault is no exception any more.
MOST_DUPLICATES = 0.01
MOST_CONFLICTS = 0.01
MOST_CROSSED = 0.05
MOST_UNLABELLED = 0.05
# So many keys must be expected at both versions before their absence says something.
_MEETINGS_EXPECTED = 20
_TRUE, _FALSE = ("1", "1.0", "true"), ("0", "0.0", "false")


@dataclass(frozen=True)
class Quality:
    """Counts of what was found; rows unless said otherwise.

    Attributes:
        predictions: in the log, of both versions in the time asked for.
        mirrored: copies of requests that the other version answered; left out.
        duplicates: logged once more under a request id and row that was there; left out.
        unusable: without a score or a decision; left out.
        without_key: which name no key, so that each request stands for itself.
        keys: distinct keys, and requests without one.
        crossed_keys: keys that both versions answered.
        crossed_rows: rows of those; left out where traffic was split by key.
        immature: whose label may still be on its way; left out.
        matured: whose label has had time.
        unlabelled: matured ones without a label; left out.
        labels: labels in the file, without those not yet known.
        unmatched_labels: which belong to none of the predictions.
        conflicting_labels: given as 0 and as 1 for one prediction; left out.
    """

    predictions: int
    mirrored: int
    duplicates: int
    unusable: int
    without_key: int
    keys: int
    crossed_keys: int
    crossed_rows: int
    immature: int
    matured: int
    unlabelled: int
    labels: int
    unmatched_labels: int
    conflicting_labels: int

    @property
    def unlabelled_share(self) -> float:
        return self.unlabelled / self.matured if self.matured else 0.0

    def content(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class LabelledLog:
    """What an experiment has to go by.

    Attributes:
        units: ``in_trial`` of everything that was split, in the order of time: of every key that one version answered by its
            first request, or of every request.
        rows: labelled rows in order of time: ``time``, ``key``, ``in_trial``, ``score``, ``decision``, ``label``.
        matured: matured rows of the control and of the version under trial, labelled or not.
        unlabelled: of those, the ones without a label.
        until: predictions before this moment are matured.
        quality: what was found.
    """

    units: pl.DataFrame
    rows: pl.DataFrame
    matured: tuple[int, int]
    unlabelled: tuple[int, int]
    until: datetime
    quality: Quality


def read_labels(uri: str, label: str) -> tuple[pl.DataFrame, int]:
    """The labels of a Parquet or CSV file: ``request_id``, ``row`` if it has one, ``label`` (bool), each prediction once.

    Returns:
        The labels that are known, and how many predictions have both.

    Raises:
        InvalidInput: the file is missing, unreadable, lacks a column, holds something else than 0 and 1, or contradicts
            itself often.
        NotAvailable: the store cannot be reached, or does not let us in.
    """
    with TemporaryDirectory(prefix="modelyard-") as scratch:
        frame = _read(uris.download(uri, Path(scratch, "labels")), uri)
    for column in ("request_id", label):
        if column not in frame.columns:
            raise InvalidInput("column", column, f"the labels in {uri} lack it; they have {', '.join(frame.columns)}")
    ids = ["request_id", *(["row"] if "row" in frame.columns else [])]
    text = pl.col(label).cast(pl.String).str.strip_chars().str.to_lowercase()
    frame = frame.select(
        pl.col("request_id").cast(pl.String),
        *([pl.col("row").cast(pl.Int32, strict=False).fill_null(0)] if "row" in ids else []),
        text.replace("", None).alias("text"),
    ).filter(pl.col("text").is_not_null())
    strange = frame.filter(~pl.col("text").is_in([*_TRUE, *_FALSE]))
    if strange.height:
        raise InvalidInput(f"column {label}", strange["text"][0], "labels are 0 or 1, or empty while not known")
    known = frame.group_by(ids).agg(
        pl.col("text").is_in(_TRUE).any().alias("label"), (~pl.col("text").is_in(_TRUE)).any().alias("other")
    )
    conflicts = known.filter(pl.col("label") & pl.col("other")).height
    if conflicts > MOST_CONFLICTS * max(known.height, 1):
        raise InvalidInput("labels", uri, f"{conflicts:,} of {known.height:,} predictions are 0 and 1; give one label each")
    return known.filter(~(pl.col("label") & pl.col("other"))).drop("other"), conflicts


def _read(path: str | os.PathLike[str], uri: str) -> pl.DataFrame:
    try:
        with Path(path).open("rb") as file:
            parquet = file.read(4) == b"PAR1"
        return pl.read_parquet(Path(path)) if parquet else pl.read_csv(Path(path), infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput("labels_uri", uri, f"it must be a readable Parquet or CSV file ({reason})") from error


def join_labels(
    predictions: pl.DataFrame,
    labels: pl.DataFrame,
    conflicts: int,
    *,
    control: str,
    trial: str,
    now: datetime,
    delay_days: float,
    split_by: str = BY_KEY,
) -> LabelledLog:
    """Puts predictions, keys and labels together.

    Args:
        predictions: rows of both versions as ``read_predictions`` gives them.
        labels: as ``read_labels`` gives them.
        conflicts: as it counts them.
        control: version in charge.
        trial: version under trial.
        now: labels have arrived until now.
        delay_days: days that a label may take.
        split_by: ``key`` or ``request``, whatever decided which version answers.

    Raises:
        InvalidInput: a version has no predictions, no label belongs to any, keys or request ids are in disorder, or the traffic
            was not split by what it is said to be split by.
    """
    total = predictions.height
    rows = predictions.filter(~pl.col("mirrored"))
    mirrored, answered = total - rows.height, rows.height
    for field, version in (("version_a", control), ("version_b", trial)):
        if not (rows["version"] == version).any():
            found = "only predictions of it on mirrored requests" if (predictions["version"] == version).any() else "none of it"
            raise InvalidInput(field, version, f"the log has {found} in this time; check version, start and end")
    rows = rows.unique(["request_id", "row"], keep="first", maintain_order=True)
    duplicates = answered - rows.height
    if duplicates > MOST_DUPLICATES * answered:
        remedy = "send an id of its own with each request"
        raise InvalidInput("request_id", f"{duplicates:,} of {answered:,} rows logged twice", remedy)
    usable = pl.col("score").is_finite() & pl.col("decision").is_in([0, 1])
    unusable = rows.height - rows.filter(usable).height
    keyless = pl.col("key").fill_null("") == ""
    rows = rows.filter(usable).with_columns(
        # A request's id stands apart from the keys, should one be called so.
        pl.when(keyless).then(pl.lit("\0") + pl.col("request_id")).otherwise("key").alias("unit"),
        (pl.col("version") == trial).alias("in_trial"),
        keyless.alias("keyless"),
    )
    keys = rows.group_by("unit", maintain_order=True).agg(
        pl.col("in_trial").first(), (pl.col("in_trial").n_unique() > 1).alias("crossed")
    )
    crossed = keys.filter("crossed")
    of_crossed = rows.join(crossed.select("unit"), on="unit", how="semi").height
    if split_by == BY_REQUEST:
        _check_split_by_request(rows, crossed.height)
        clean, units = rows, rows.unique("request_id", keep="first", maintain_order=True)
    else:
        if crossed.height > MOST_CROSSED * keys.height:
            raise InvalidInput(
                "key",
                f"{crossed.height:,} of {keys.height:,} keys were answered by both versions",
                "send a key with each request (x-modelyard-key), and start the analysis after the share was changed last; "
                "where chance decides for each request, as in KServe, give split_by = 'request'",
            )
        clean = rows.join(crossed.select("unit"), on="unit", how="anti", maintain_order="left")
        units = keys.filter(~pl.col("crossed"))
    until = now - timedelta(days=delay_days)
    matured = clean.filter(pl.col("time") < until)
    by = ["request_id", *(["row"] if "row" in labels.columns else [])]
    if "row" not in labels.columns and (rows["row"] > 0).any():
        raise InvalidInput("column", "row", "requests have several rows here, so the labels must say which; add the column")
    joined = matured.join(labels, on=by, how="left", maintain_order="left")
    unmatched = labels.join(rows.select(by), on=by, how="anti").height
    if labels.height == unmatched:
        raise InvalidInput(
            "labels", f"{labels.height:,} labels, {rows.height:,} predictions", "none belong together; check the request ids"
        )
    unlabelled = joined.filter(pl.col("label").is_null())
    quality = Quality(
        predictions=total,
        mirrored=mirrored,
        duplicates=duplicates,
        unusable=unusable,
        without_key=int(rows["keyless"].sum()),
        keys=keys.height,
        crossed_keys=crossed.height,
        crossed_rows=of_crossed,
        immature=clean.height - matured.height,
        matured=matured.height,
        unlabelled=unlabelled.height,
        labels=labels.height + conflicts,
        unmatched_labels=unmatched,
        conflicting_labels=conflicts,
    )
    labelled = joined.filter(pl.col("label").is_not_null()).select(
        "time", pl.col("unit").alias("key"), "in_trial", "score", pl.col("decision") == 1, "label"
    )
    return LabelledLog(units.select("in_trial"), labelled, _by_arm(matured), _by_arm(unlabelled), until, quality)


def _check_split_by_request(rows: pl.DataFrame, crossed: int) -> None:
    """Raises if keys meet both versions far less often than they would if chance decided for each request."""
    requests = rows.unique("request_id", keep="first")
    share = float((requests["in_trial"].cast(pl.Float64).sum()) / requests.height)
    of_key = requests.group_by("unit").len()["len"].to_numpy()
    expected = float((1 - share**of_key - (1 - share) ** of_key).sum())
    if expected >= _MEETINGS_EXPECTED and crossed < expected / 2:
        raise InvalidInput(
            "split_by",
            BY_REQUEST,
            f"{crossed:,} keys were answered by both versions, and about {expected:,.0f} would be if each request were split "
            f"for itself; give {BY_KEY!r}",
        )


def _by_arm(frame: pl.DataFrame) -> tuple[int, int]:
    in_trial = int(frame["in_trial"].sum())
    return frame.height - in_trial, in_trial

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.registry import promotion, versions
from modelyard.components.registry.promotion import PromotionRefused, promote_model, reject_challenger
from modelyard.components.tracking.connection import client

PROMOTE = (
    "import sys; from modelyard.components.registry.promotion import promote_model\n"
    "print('ready', flush=True); sys.stdin.readline()\n"
    "print(repr(promote_model('fraud', sys.argv[1], sys.argv[2])))\n"
)


def start_promotion(made) -> subprocess.Popen[str]:
    """Starts a process that promotes a version when it is told to go on, and waits until it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROMOTE, made.version, made.digest],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def named() -> dict[str, str]:
    return versions.aliases(client(), "fraud")


def tagged_previous() -> list[str]:
    return [str(v.version) for v in versions.all_versions(client(), "fraud") if v.tags.get("previous") == "true"]


@pytest.fixture
def champion(release):
    made = release(0).register()
    promote_model("fraud", made.version, made.digest)
    return made


@pytest.fixture
def challenger(release, champion):
    return release(1, champion).register()


def test_the_first_version_becomes_champion_of_nobody(release):
    made = release().register()
    assert promote_model("fraud", made.version, made.digest) == ""
    assert named() == {"champion": made.version}


def test_the_outgoing_version_is_the_previous_one(champion, challenger):
    assert named() == {"champion": champion.version, "challenger": challenger.version}
    assert promote_model("fraud", challenger.version, challenger.digest) == champion.version
    assert named() == {"champion": challenger.version, "previous": champion.version}
    assert tagged_previous() == [champion.version]


def test_only_the_last_outgoing_version_is_the_previous_one(champion, challenger, release):
    promote_model("fraud", challenger.version, challenger.digest)
    third = release(2, challenger).register()
    promote_model("fraud", third.version, third.digest)
    assert tagged_previous() == [challenger.version]
    assert named() == {"champion": third.version, "previous": challenger.version}


def test_repeating_a_promotion_changes_nothing(champion, challenger):
    promote_model("fraud", challenger.version, challenger.digest)
    before = [dict(version.tags) for version in versions.all_versions(client(), "fraud")], named()
    assert promote_model("fraud", challenger.version, challenger.digest) == champion.version
    assert ([dict(version.tags) for version in versions.all_versions(client(), "fraud")], named()) == before


def test_a_version_is_promoted_only_over_the_champion_it_was_judged_against(champion, challenger, release):
    rival = release(2, champion).register()
    promote_model("fraud", challenger.version, challenger.digest)
    for _ in range(2):
        with pytest.raises(PromotionRefused, match="judged against version 1, but the champion is version 2"):
            promote_model("fraud", rival.version, rival.digest)
    assert named()["champion"] == challenger.version


def test_a_version_that_was_judged_as_the_first_is_not_promoted_over_a_champion(champion, release):
    rival = release(2).register()
    with pytest.raises(PromotionRefused, match="judged against no champion"):
        promote_model("fraud", rival.version, rival.digest)


def test_the_previous_version_can_be_brought_back_by_naming_whom_it_replaces(champion, challenger):
    promote_model("fraud", challenger.version, challenger.digest)
    assert promote_model("fraud", champion.version, champion.digest, replacing=challenger.version) == challenger.version
    assert named() == {"champion": champion.version, "previous": challenger.version}
    assert tagged_previous() == [challenger.version]


def test_a_wrong_digest_or_version_is_refused(champion, challenger):
    with pytest.raises(InvalidInput, match="digest"):
        promote_model("fraud", challenger.version, champion.digest)
    for version in ("99", "latest", ""):
        with pytest.raises(InvalidInput, match="version"):
            promote_model("fraud", version, champion.digest)
    assert named()["champion"] == champion.version


def test_a_version_whose_stored_model_was_altered_is_not_promoted(champion, challenger):
    (Path(challenger.uri) / "model.ubj").write_bytes(b"other")
    with pytest.raises(VerificationFailed):
        promote_model("fraud", challenger.version, challenger.digest)
    assert named()["champion"] == champion.version


def test_a_version_that_something_else_registered_is_not_promoted(champion):
    other = client().create_model_version("fraud", champion.uri, await_creation_for=0)
    with pytest.raises(VerificationFailed, match="not registered by register_model"):
        promote_model("fraud", str(other.version), champion.digest)


def test_an_alias_moved_by_hand_is_taken_as_it_is(champion, challenger, release):
    client().set_registered_model_alias("fraud", "champion", challenger.version)
    third = release(2, challenger).register()
    assert promote_model("fraud", third.version, third.digest) == challenger.version


def test_of_promotions_at_once_exactly_one_wins_and_the_losers_stay_losers(champion, release):
    rivals = [release(seed, champion).register() for seed in (1, 2, 3)]
    started = [start_promotion(rival) for rival in rivals]
    for process in started:
        go(process)
    answers = [process.communicate(timeout=120) for process in started]
    won = [rival for rival, process in zip(rivals, started) if process.returncode == 0]
    assert len(won) == 1, answers
    assert all("PromotionRefused" in errors for (_, errors), process in zip(answers, started) if process.returncode)
    assert named() | {"challenger": ""} == {"champion": won[0].version, "previous": champion.version, "challenger": ""}
    for rival in rivals:
        if rival is not won[0]:
            with pytest.raises(PromotionRefused):
                promote_model("fraud", rival.version, rival.digest)
    assert named()["champion"] == won[0].version
    assert tagged_previous() == [champion.version]


def test_rivals_that_have_both_seen_the_same_champion_cannot_both_win(champion, release, monkeypatch):
    """The second promotes while the first stands between looking and writing."""
    first, second = (release(seed, champion).register() for seed in (1, 2))
    append = promotion._append

    def let_the_other_go_first(*arguments, **details):
        monkeypatch.setattr(promotion, "_append", append)
        promote_model("fraud", second.version, second.digest)
        return append(*arguments, **details)

    monkeypatch.setattr(promotion, "_append", let_the_other_go_first)
    with pytest.raises(PromotionRefused, match="came first"):
        promote_model("fraud", first.version, first.digest)
    assert named()["champion"] == second.version
    third = release(3, second).register()
    assert promote_model("fraud", third.version, third.digest) == second.version


def test_a_winner_that_stalls_does_not_set_back_whoever_followed(champion, challenger, release, monkeypatch):
    """The first has won and stands before moving the aliases, while the next promotion begins and ends."""
    move = promotion._move

    def let_the_next_come_and_go(*arguments):
        monkeypatch.setattr(promotion, "_move", move)
        third = release(2, challenger).register()
        promote_model("fraud", third.version, third.digest)
        move(*arguments)

    monkeypatch.setattr(promotion, "_move", let_the_next_come_and_go)
    promote_model("fraud", challenger.version, challenger.digest)
    assert named()["champion"] == "3"
    assert named()["previous"] == challenger.version
    assert tagged_previous() == [challenger.version]


MOVES = ["set_registered_model_alias", "set_model_version_tag", "delete_registered_model_alias", "create_model_version"]


@pytest.mark.parametrize("call", MOVES)
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("number", [1, 2])
def test_a_promotion_that_stopped_at_any_request_is_completed_by_its_rerun(
    champion, challenger, monkeypatch, call, before, number
):
    from mlflow.tracking import MlflowClient

    work = getattr(MlflowClient, call)
    count = 0

    def stop(*arguments, **details):
        nonlocal count
        count += 1
        if count < number:
            return work(*arguments, **details)
        if not before:
            work(*arguments, **details)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, stop)
        with contextlib.suppress(KeyboardInterrupt):
            promote_model("fraud", challenger.version, challenger.digest)
    assert promote_model("fraud", challenger.version, challenger.digest) == champion.version
    assert named() == {"champion": challenger.version, "previous": champion.version}
    assert tagged_previous() == [champion.version]


def test_what_a_killed_winner_left_undone_is_done_by_whoever_promotes_next(champion, challenger, release, monkeypatch):
    rival = release(2, champion).register()
    with monkeypatch.context() as patch:
        patch.setattr(promotion, "_finish", lambda *arguments: None)
        promote_model("fraud", challenger.version, challenger.digest)
    assert named()["champion"] == champion.version
    with pytest.raises(PromotionRefused):
        promote_model("fraud", rival.version, rival.digest)
    assert named()["champion"] == challenger.version
    assert tagged_previous() == [champion.version]


def test_a_promotion_that_was_killed_at_any_moment_is_completed_by_its_rerun(champion, challenger):
    for step in range(5):
        process = start_promotion(challenger)
        go(process)
        time.sleep(0.05 * step)
        process.kill()
        process.communicate()
        assert named()["champion"] in {champion.version, challenger.version}
    assert promote_model("fraud", challenger.version, challenger.digest) == champion.version
    assert named() == {"champion": challenger.version, "previous": champion.version}


def test_a_rejected_challenger_is_no_challenger_and_says_why(champion, challenger):
    for _ in range(2):
        reject_challenger("fraud", challenger.version, "p99 was 80 ms")
    assert named() == {"champion": champion.version}
    assert client().get_model_version("fraud", challenger.version).tags["rejected_reason"] == "p99 was 80 ms"


def test_rejecting_an_older_version_leaves_the_challenger_alone(champion, challenger, release):
    newer = release(2, champion).register()
    reject_challenger("fraud", challenger.version, "slow")
    assert named()["challenger"] == newer.version


def test_a_champion_that_was_replaced_and_is_rejected_is_not_the_one_to_go_back_to(champion, challenger):
    promote_model("fraud", challenger.version, challenger.digest)
    assert named()["previous"] == champion.version
    for _ in range(2):
        reject_challenger("fraud", champion.version, "slow")
    assert named() == {"champion": challenger.version}
    assert versions.PREVIOUS not in client().get_model_version("fraud", champion.version).tags


def test_the_champion_cannot_be_rejected(champion):
    with pytest.raises(InvalidInput, match="it is the champion"):
        reject_challenger("fraud", champion.version, "slow")


def test_a_registry_that_does_not_answer_is_an_error(champion, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(NotAvailable, match="MLflow"):
        promote_model("fraud", champion.version, champion.digest)

"""The end of a release whose model nobody serves yet: the registry is told that it is the champion, or nothing is done."""

from modelyard.components.artifacts.names import check_model_name
from modelyard.components.plots.page import Banner, render_page
from modelyard.components.registry.promotion import promote_model
from modelyard.components.rollout.engine import PROMOTED
from modelyard.components.rollout.plan import NOBODY

REGISTERED = "registered"


def settle_without_traffic(target: str, model_name: str, version: str, digest: str) -> tuple[str, str]:
    """Makes a version the champion, or leaves it the challenger.

    Args:
        target: ``registry`` or ``none``.
        model_name: the registered model.
        version: the version.
        digest: its model digest.

    Returns:
        ``promoted`` or ``registered``, and why.

    Raises:
        PromotionRefused: another version is champion now than the one it was judged against.
        InvalidInput, VerificationFailed, NotAvailable: as ``promote_model``.
    """
    check_model_name(model_name)
    if target == NOBODY:
        return REGISTERED, f"version {version} stays the challenger, as asked (target none): no traffic has tried it"
    promote_model(model_name, version, digest)
    return PROMOTED, f"version {version} is the champion in the registry, as asked (target registry): no traffic has tried it"


def page_of(model_name: str, version: str, outcome: str, reason: str) -> str:
    """The report of a rollout that has seen no traffic."""
    headline = "Champion in the registry." if outcome == PROMOTED else "Registered; the champion stays."
    banner = Banner("pass", "good", headline, [reason])
    return render_page(model_name, [], kicker="Rollout", subtitle=f"Version {version}", banner=banner)

"""What the settings say, in the terms of the rooms that go by it. So the settings know no room, and no room them."""

from gateway.config.settings import BackgroundSettings, Settings
from gateway.identity.background import BackgroundRule, BackgroundRules
from gateway.identity.keys import Key, key_digest
from gateway.pricing.profile import Profile
from gateway.scheduling.limits import Limits
from gateway.slicing.planner import Slicing


def limits(settings: Settings, profile: Profile) -> Limits:
    """ValueError if the profile lacks what `tpot_target` needs."""
    seats = settings.engine.max_num_seqs
    if settings.tpot_target is not None:
        seats = min(seats, profile.sequences(settings.tpot_target))
    return Limits(
        long_prompt_tokens=settings.long_prompt_tokens,
        short_lane_tokens=settings.short_lane_tokens or settings.engine.step_tokens,
        long_lane_jobs=settings.long_lane_jobs,
        max_num_seqs=seats,
        kv_tokens=settings.engine.kv_tokens,
        flow_in_flight=settings.flow_in_flight,
        flow_queued=settings.flow_queued,
        max_queued=settings.max_queued,
        max_queued_s=settings.max_queued_s,
    )


def slicing(settings: Settings) -> Slicing | None:
    """How long prompts are cut; None if they are not."""
    if not settings.slicing:
        return None
    engine = settings.engine
    step = min(engine.long_prefill_threshold or engine.step_tokens, engine.step_tokens)
    return Slicing(settings.max_stall, settings.long_share, settings.tpot_target, step)


def api_keys(settings: Settings) -> list[Key]:
    """Those of [[keys]]; a keys file has its own."""
    return [
        Key(digest=key_digest(each.key.get_secret_value()), **each.model_dump(exclude={"key"}))
        for each in settings.keys
    ]


def background_rules(settings: Settings) -> BackgroundRules:
    return BackgroundRules(tuple(map(_rule, settings.background)), settings.background_webui)


def _rule(settings: BackgroundSettings) -> BackgroundRule:
    name, _, value = (settings.header or "").partition(":")
    return BackgroundRule(
        owner=settings.owner,
        user=settings.user,
        model=settings.model,
        header=name.strip().lower().encode(),
        value=value.strip().encode(),
        text=settings.text or "",
    )

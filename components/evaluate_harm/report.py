"""The evaluation as one self-contained HTML page for two readers: who decides, and who must know why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from secvec.components.evaluate_harm.catalogue import Texts
from secvec.components.evaluate_harm.config import Language
from secvec.components.evaluate_harm.outcomes import Outcome
from secvec.components.evaluate_harm.plots import (
    Axis,
    Measure,
    draw_bars,
    draw_tradeoff,
    fit_axis,
    percent_axis,
)
from secvec.components.evaluate_harm.report_tables import (
    describe_power,
    format_duration,
    list_agreements,
    list_attacks,
    list_categories,
    list_contrasts,
    list_costs,
    list_judges,
    list_languages,
    list_suites,
    list_suspects,
)
from secvec.components.evaluate_harm.samples import sample_outcomes
from secvec.components.evaluate_harm.strata import keep_worst
from secvec.components.shared.pages import page_templates


def render_report(
    statistics: Mapping[str, Any], outcomes: Sequence[Outcome], *, language: Language = "en"
) -> str:
    """Render ``report.html``.

    Args:
        statistics: Content of ``statistics.json``.
        outcomes: Of all arms; a few of them are shown, redacted.
        language: Of the page's own text; prompts and answers stay as they are.

    Returns:
        The page; it holds no time, no machine name and no full answer, and asks for nothing outside itself.
    """
    text = Texts(language)
    names = name_arms(statistics["guard"], text)
    environment = page_templates("secvec.components.evaluate_harm")
    unknown = text("not_measured")
    environment.filters.update(
        percent=lambda rate: unknown if rate is None else format_percent(rate),
        loss=lambda nats: unknown if nats is None else f"{nats:.3f}",
        seconds=lambda seconds: format_duration(seconds, text),
    )
    return environment.get_template("report.html.j2").render(
        t=text,
        statistics=statistics,
        arms=statistics["arms"],
        names=names,
        legend=_explain_arms(statistics["guard"], text),
        standalone=statistics["guard"] is None,
        with_guard=statistics["guard"] not in (None, "none"),
        controls=statistics.get("controls"),
        limit=statistics.get("limit"),
        attacks=statistics.get("attacks", {}),
        attack_rows=list_attacks(statistics, text),
        category_rows=list_categories(statistics, text),
        language_rows=list_languages(statistics, text),
        suite_rows=list_suites(statistics, text),
        judges=list_judges(statistics, text),
        agreements=list_agreements(statistics, text),
        contrasts=list_contrasts(statistics, text, names),
        suspects=list_suspects(statistics),
        attribution=statistics.get("attribution"),
        champion=statistics.get("champion"),
        margin=f"{100 * statistics['power']['margin']:.3g}" if statistics.get("power") else "",
        power=describe_power(statistics, text),
        sampling=statistics.get("sampling"),
        plots=_draw_plots(statistics, text) if statistics["arms"]["guarded"]["n_harm"] else {},
        samples=sample_outcomes(keep_worst(outcomes)),
        cost=_cost_ratio(statistics["step_seconds"]),
        cost_lines=list_costs(statistics, text),
    )


def name_arms(guard: str | None, text: Texts) -> dict[str, str]:
    """How each arm is called in the page; a model trained with guard ``none`` is not called guarded."""
    kind = "_any" if guard is None else "_none" if guard == "none" else ""
    return {arm: _variant(f"name_{arm}", kind, text) for arm in _ARMS}


def format_percent(rate: float) -> str:
    """A rate in [0, 1] as a percentage."""
    return f"{100 * rate:.1f}%"


_ARMS = ("base", "guarded", "unguarded", "vector_active")


def _explain_arms(guard: str | None, text: Texts) -> dict[str, str]:
    base = "_any" if guard is None else ""
    own = "" if guard not in (None, "none") else "_none"
    kinds = {"base": base, "guarded": own}
    return {arm: _variant(f"legend_{arm}", kinds.get(arm, ""), text) for arm in _ARMS}


def _variant(key: str, kind: str, text: Texts) -> str:
    return text(key + kind) if text.has(key + kind) else text(key)


def _cost_ratio(step_seconds: Mapping[str, float]) -> float | None:
    guarded, unguarded = step_seconds.get("guarded"), step_seconds.get("unguarded")
    return guarded / unguarded if guarded and unguarded else None


def _draw_plots(statistics: Mapping[str, Any], text: Texts) -> dict[str, Markup]:
    arms, names = statistics["arms"], name_arms(statistics["guard"], text)
    is_loss = statistics["utility_metric"] == "loss"
    harm = {arm: _measure(arm, names[arm], found, "harm", value="harm_rate") for arm, found in arms.items()}
    prefix = "utility_loss" if is_loss else "utility"
    shown = text("nats", value="{:.3f}") if is_loss else ""
    utility = {
        arm: _measure(arm, names[arm], found, prefix, shown=shown)
        for arm, found in arms.items()
        if found[prefix] is not None
    }
    harm_axis = percent_axis(text("axis_harm"))
    utility_axis = _utility_axis(utility, is_loss=is_loss, text=text)
    plots = {"harm": draw_bars(list(harm.values()), harm_axis, title=text("plot_harm_spoken"))}
    if utility:
        plots["utility"] = draw_bars(list(utility.values()), utility_axis, title=text("plot_skill_spoken"))
        plots["tradeoff"] = draw_tradeoff(
            [(utility[arm], harm[arm]) for arm in utility],
            Axis(utility_axis.title, utility_axis.ticks, utility_axis.labels, reverse=is_loss),
            harm_axis,
            title=text("plot_tradeoff"),
            better=text("better"),
        )
    return plots


def _utility_axis(utility: Mapping[str, Measure], *, is_loss: bool, text: Texts) -> Axis:
    if is_loss:
        largest = max((m.upper for m in utility.values()), default=1.0)
        return fit_axis(text("axis_loss"), largest)
    return percent_axis(text("axis_skill"))


def _measure(
    arm: str, label: str, figures: Mapping[str, Any], prefix: str, *, value: str = "", shown: str = ""
) -> Measure:
    """A figure with its bounds; `shown` is how it is written, as a format, or a percentage without one."""
    found = figures[value or prefix]
    lower, upper = figures[f"{prefix}_lower95"], figures[f"{prefix}_upper95"]
    return Measure(
        arm=arm,
        label=label,
        value=found,
        lower=found if lower is None else lower,
        upper=found if upper is None else upper,
        shown=shown.format(found) if shown else format_percent(found),
    )

"""What came out of a study: its settings, its slopes, its table and its figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deepres.experiments import aggregate
from deepres.experiments.curves import equal_seconds, plot_curves, write_curves
from deepres.experiments.folder import Row, StudyFolder, write_rows
from deepres.experiments.numbers import meanings
from deepres.experiments.settings import Setting, finite, lines, most_steps, scored, settings
from deepres.experiments.statistics import ROUNDING, depth_slope, drawn_seeds
from deepres.experiments.study import Study, Trial, named

MOST_LINES = 6  # that a reader tells apart in one panel
FEWEST = 3  # seeds of each setting, below which nothing is decided


def report(study: Study, trials: list[Trial], folder: StudyFolder) -> list[Row]:
    """Write table.md and the figure from the finished rows, and print the table; returns the rows."""
    from deepres.report.lines import Line, Place, plot_lines
    from deepres.report.tables import console, table

    rows = write_rows(folder, trials)
    found_in = scored(study, rows)
    if not found_in:
        return rows
    names = list(trials[0].labels)
    found = settings(found_in, names, study.metric)
    estimates = [one.estimate(study) for one in found]
    drawn = lines(study, found)
    more = {name: settings(found_in, names, name) for name in study.also}
    shown = (study.metric, "each seed", *study.also)
    columns = (
        *(n.replace("_", " ") for n in names if n != "seed"),
        "seeds",
        *(n.replace("_", " ") for n in shown),
    )
    cells = [
        (
            *(str(value) for value in one.labels.values()),
            str(len(one.scores)),
            estimates[i].text(study.form)
            if len(one.scores) > 1 or study.interval
            else study.form.format(estimates[i].value),
            ", ".join(study.form.format(score) for score in one.scores.values()),
            *(f"{more[name][i].mean.value:.4g}" for name in study.also),
        )
        for i, one in enumerate(found)
    ]
    console().print(table(f"{study.name}: {study.question}", columns, cells))
    sentence = study.says(found_in) if study.says else verdict(study, found)
    curves = write_curves(folder, trials) if study.curves else {}
    if curves:
        machines = {t.words: row["made"]["machine"] for t in trials if (row := folder.finished(t))}
        sentence += _at_equal_seconds(
            study,
            equal_seconds(curves, names, study.along, study.metric, machines),
            max(len(one.scores) for one in found),
        )
    print(sentence, flush=True)
    folder.write(folder.path / "table.md", _markdown(study, columns, cells, sentence, found, rows, trials))
    if curves:
        plot_curves(curves, names, study.along, study.name, folder.path / "curves.png")
    at = dict(zip(map(id, found), estimates, strict=True))
    plotted = [
        Line(
            name,
            {
                one.labels.get(study.along): Place(
                    list(one.scores.values()), at[id(one)].value, at[id(one)].low, at[id(one)].high
                )
                for one in line
            },
            panel,
        )
        for (panel, name), line in zip(_panels(study, drawn), drawn.values(), strict=True)
    ]
    plot_lines(plotted, study.along, study.metric, study.name, folder.path / "figure.png")
    return rows


def _at_equal_seconds(study: Study, scores: dict[str, dict[int, dict[int, float]]], most: int) -> str:
    """What the slopes are where every setting trains as many seconds as the fastest one. most: seeds of a setting."""
    drawn = {
        line: [Setting({study.along: value}, of) for value, of in by_value.items()]
        for line, by_value in scores.items()
    }
    told = "; ".join(f"{name} {slope}, {says}" for name, slope, says in slopes(study, drawn, most))
    return (
        f" At equal seconds of training, those of the fastest setting of each seed: {told}." if told else ""
    )


def _panels(study: Study, drawn: dict[str, list[Setting]]) -> list[tuple[str, str]]:
    """Of each line its panel's title and its name there: by the labels that tell lines apart. Many lines get a panel
    for each value of the label that has most of them."""
    labels = [line[0].labels for line in drawn.values()]
    others = [name for name in labels[0] if name != study.along]
    values = {name: {str(one[name]) for one in labels} for name in others}
    apart = [name for name in others if len(values[name]) > 1]
    panel = max(apart, key=lambda name: len(values[name])) if len(labels) > MOST_LINES else None
    inside = [name for name in apart if name != panel]
    return [(str(one[panel]) if panel else "", named({name: one[name] for name in inside})) for one in labels]


def verdict(study: Study, found: Sequence[Setting]) -> str:
    """What the rows say: for every line the slope of the metric on log2 of the axis, with its interval; of a study
    without slopes, the lowest and the highest setting."""
    metric, along = study.metric.replace("_", " "), study.along.replace("_", " ")
    if not study.slopes:
        return f"{_extremes(study, found)}."
    most = max((len(one.scores) for one in found), default=0)
    told = "; ".join(
        f"{name} {slope}, {says}" for name, slope, says in slopes(study, lines(study, found), most)
    )
    if not told:
        return f"No slope of {metric} yet: it takes two values of {along}."
    return f"{metric[:1].upper()}{metric[1:]} per doubling of {along}, with its 95% interval: {told}."


def _extremes(study: Study, found: Sequence[Setting]) -> str:
    metric = study.metric.replace("_", " ")
    there = sorted((one for one in found if math.isfinite(one.mean.value)), key=lambda one: one.mean.value)
    if not there:
        return f"No {metric} that is a number"
    ends = (f"{_mean(study, one)} ({named(one.labels)})" for one in (there[0], there[-1]))
    return f"{metric[:1].upper()}{metric[1:]} from " + " to ".join(ends)


def _mean(study: Study, one: Setting) -> str:
    return one.mean.text(study.form) if len(one.scores) > 1 else study.form.format(one.mean.value)


def slopes(study: Study, drawn: dict[str, list[Setting]], most: int) -> list[tuple[str, str, str]]:
    """Of every line: what it is, its slope with the interval, and in a word where it goes; and how many seeds that
    rests on where they are fewer than `most`. Left out are scores that are no number, and settings that are no positive
    number."""
    told = []
    for name, line in drawn.items():
        by_value = {
            one.labels[study.along]: {s: score for s, score in one.scores.items() if math.isfinite(score)}
            for one in line
            if _positive(one.labels[study.along])
        }
        by_value = {value: scores for value, scores in by_value.items() if scores}
        if len(by_value) < 2:
            continue
        slope = depth_slope(by_value)
        says = "rises" if slope.low > 0 else "falls" if slope.high < 0 else "undecided"
        if max(abs(slope.low), abs(slope.high)) < ROUNDING:
            says = "is flat"
        if (seeds := drawn_seeds(by_value)) < FEWEST:
            says = f"has too few seeds ({seeds}) to decide"
        elif seeds < most:
            says += f" ({seeds} seeds)"
        text = slope.text("{:+.3f}") if seeds >= FEWEST else f"{slope.value:+.3f}"
        told.append((name or study.metric, text, says))
    return told


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _task(trials: Sequence[Trial]) -> str:
    """Which task and which width: what the table does not say."""
    envs = dict.fromkeys(trial.config.env.name for trial in trials)
    widths = sorted({trial.config.network.width for trial in trials})
    return f"Task: {', '.join(envs)}; width {', '.join(map(str, widths))}."


def _made(study: Study, rows: Sequence[Row], trials: Sequence[Trial]) -> str:
    """How long a trial is, in which precision it computes, and where its episodes begin."""
    most = zip(most_steps(study, trials, rows), ("environment", "gradient"), strict=True)
    steps = [f"{count:,.0f} {word}" for count, word in most if count]
    told = f"At most {' and '.join(steps)} steps a trial. " if steps else ""
    precisions = sorted({str(trial.config.system.stack["precision"]) for trial in trials})
    starts = sorted({trial.config.env.auto_reset for trial in trials})
    return f"{told}Precision {', '.join(precisions)}; auto_reset {', '.join(starts)}. "


def _markdown(
    study: Study,
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    sentence: str,
    found: Sequence[Setting],
    rows: list[Row],
    trials: Sequence[Trial],
) -> str:
    line = "| " + " | ".join(columns) + " |"
    body = "\n".join("| " + " | ".join(one) + " |" for one in cells)
    machines = ", ".join(sorted({str(row["machine"]) for row in rows}))
    versions = ", ".join(sorted({str(row["version"]) for row in rows}))
    timed = finite(rows, "seconds")
    hours = f"{sum(timed) / 3600:.1f} hours of training in all" if timed else "no training was timed"
    diverged = sum(float(row.get("diverged") or 0) for row in rows)
    return (
        f"# {study.name}: {study.question}\n\n"
        f"Source: {study.source}. Claim: {study.claim} It would be refuted by: {study.refuted}\n\n"
        f"{_task(trials)} {meanings((study.metric, *study.also))}\n\n"
        f"{line}\n{'|' + ' --- |' * len(columns)}\n{body}\n\n"
        f"{sentence}\n\n"
        f"Mean over the seeds with its 95% bootstrap interval (of 3 seeds, what they span); a slope's is Student's. "
        f"{len(rows)} of {len(trials)} trials finished, {diverged:.0f} diverged; {hours}. "
        f"{_made(study, rows, trials)}Machine: {machines}. deepres {versions}.\n\n"
        f"{aggregate.markdown(study, found)}"
        f"    deepres experiment {study.name}\n\n![{study.name}](figure.png)\n"
    )

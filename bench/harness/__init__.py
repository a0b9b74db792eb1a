"""How anything here is timed: processes, turns, quantiles, and the one form of a result file.

    workers       a process for each contestant; it sleeps while another runs
    turns         turns in rotating order, medians and percentiles, ratios round by round
    memory        peak memory of a call, and of a process
    environment   where a figure was measured
    results       the one form of a result file, and the folder that it goes to
    contestants   what a case, a contestant and an op are
    desk          what a worker process of bench/throughput.py can be asked
    contest       the contestants of an op: checked, weighed, timed in turns
    progress      the bar, and tables on a terminal
    table, plot   Markdown and a picture from a result file

Nothing here knows an op or an algorithm: those are in bench/ops and bench/train.
"""

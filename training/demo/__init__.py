"""`tapewatch demo`: the main job from end to end, with no server and no file needed.

    scenario   what is simulated, trained on and planted (frozen)
    daemon     `tapewatch run` as a process of its own, and what its /metrics say
    session    the run: train, start broker and daemon, feed them, read the events
    findings   which events are planted anomalies, which are false alarms; the summary
    view       the live terminal view, or plain lines where there is no terminal
    picture    one moment of that view as SVG, for the documents

The daemon is the one that runs in production, told by its configuration file alone. It stands
beside `training` because it trains a model; the runtime does not know it.
"""

"""Making a model fit its device, and what each step cost: prune, report, plan, bench.

`plan` and `memory` are light enough for the daemon; the rest is for commands. Native work runs in children.
"""

"""The CPU benchmark suite: our layers beside every other engine that can run them, on the same cases, weights and threads.

torch.nn's layers have `cases` and `peers`; cells of one's own `own_cases`, `loops` and `ways`. Both are timed by `suite` and `timing`.
"""

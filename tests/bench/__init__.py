"""What the notifier costs: evaluation, memory, start, sending, ledger, shards. `make bench`, or `make bench FULL=1`.

Each figure is a ratio to something measured in the same run, turn about: times alone tell of the machine.
"""

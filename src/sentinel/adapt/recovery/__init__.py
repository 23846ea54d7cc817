"""Training after pruning: the pruned model learns from the unpruned one."""

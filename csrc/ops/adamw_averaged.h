/* adamw.h with the denominators of a gradient averaged over several workers. */

KERNEL(adamw_averaged) { adamw_items(args, begin, end, 1); }

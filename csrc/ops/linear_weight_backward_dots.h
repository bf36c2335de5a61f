/* The gradient of the weights of linear layers, in bfloat16: linear_weight_backward.h over pairs of rows. Bound by
 * arithmetic. */

KERNEL(linear_weight_backward_dots) {
    linear_weight_backward(args, begin, end, 1);
}

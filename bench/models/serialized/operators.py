"""The operators that a program from elsewhere may name: arithmetic on tensors, and no more.

A list of what is allowed, since ATen also knows how to write files, to print and to talk to other
machines. What is not listed is refused by its name, before anything of the program has run.
"""

ARITHMETIC = """
abs absolute add addcdiv addcmul asin atan atan2 bitwise_and bitwise_not bitwise_or bitwise_xor ceil
clamp clamp_max clamp_min clip cos cosh div divide eq erf erfc erfinv exp exp2 expm1 floor
floor_divide floordiv fmax fmin fmod frac ge greater greater_equal gt heaviside hypot isfinite isinf
isnan le lerp less less_equal log log10 log1p log2 logaddexp logical_and logical_not logical_or
logical_xor lt masked_fill maximum minimum mul multiply nan_to_num ne neg negative not_equal pow
reciprocal remainder round rsqrt rsub sigmoid sign sin sinh sqrt square sub subtract tan tanh
true_divide trunc where xlogy
"""
REDUCTIONS = """
all amax amin aminmax any argmax argmin argsort count_nonzero cumprod cumsum kthvalue
linalg_matrix_norm linalg_norm linalg_vector_norm logsumexp max mean median min norm prod sort std
std_mean sum topk var var_mean
"""
PRODUCTS = """
addbmm addmm addmv baddbmm bilinear bmm dot einsum inner linear matmul mm mv outer tensordot
_convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
scaled_dot_product_attention _scaled_dot_product_attention_math _native_multi_head_attention
embedding
"""
LAYERS = """
_adaptive_avg_pool2d _adaptive_avg_pool3d _log_softmax _native_batch_norm_legit
_native_batch_norm_legit_no_training _prelu_kernel _softmax _weight_norm adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm celu dropout elu feature_alpha_dropout
feature_dropout gelu glu group_norm hardshrink hardsigmoid hardswish hardtanh instance_norm
layer_norm leaky_relu log_sigmoid log_softmax max_pool1d max_pool1d_with_indices max_pool2d
max_pool2d_with_indices max_pool3d max_pool3d_with_indices mish native_batch_norm native_dropout
native_group_norm native_layer_norm prelu relu relu6 rms_norm rrelu selu silu softmax softplus
softshrink threshold
"""
SHAPES = """
_reshape_alias _unsafe_view affine_grid_generator alias broadcast_tensors broadcast_to cat
channel_shuffle chunk clone col2im concat concatenate constant_pad_nd contiguous copy detach
diagonal expand expand_as fill flatten flip gather grid_sampler grid_sampler_2d hstack im2col index
index_add index_copy index_fill index_put index_select lift_fresh lift_fresh_copy masked_scatter
masked_select meshgrid movedim narrow one_hot pad permute pixel_shuffle pixel_unshuffle
reflection_pad1d reflection_pad2d repeat repeat_interleave replication_pad1d replication_pad2d
reshape reshape_as roll rot90 scatter scatter_add select select_scatter slice slice_scatter split
split_with_sizes squeeze stack swapaxes swapdims t take take_along_dim tensor_split tile transpose
tril triu unbind unflatten unfold unsqueeze upsample_bicubic2d upsample_bilinear2d
upsample_nearest2d view view_as vstack zero _upsample_bicubic2d_aa _upsample_bilinear2d_aa
"""
MAKING = """
arange bernoulli empty empty_like eye full full_like linspace new_empty new_full new_ones new_zeros
normal ones ones_like rand rand_like randint randn randn_like scalar_tensor tensor uniform zeros
zeros_like
"""
KINDS = """
_to_copy bfloat16 bool double float half int long to type_as
Bool BoolImplicit Float FloatImplicit Int IntImplicit ScalarImplicit
_local_scalar_dense item device dim is_floating_point len numel size sym_numel sym_size
"""
CHECKS = """
_assert_async _assert_scalar _assert_tensor_metadata sym_constrain_range
sym_constrain_range_for_size
"""
LANGUAGE = """
__and__ __contains__ __derive_index __getitem__ __is__ __isnot__ __not__ __or__ __range_length
__round_to_zero_floordiv _set_item append extend format insert list
"""
"""What TorchScript has for numbers, lists and loops."""

ATEN = frozenset(
    " ".join(
        [ARITHMETIC, REDUCTIONS, PRODUCTS, LAYERS, SHAPES, MAKING, KINDS, CHECKS, LANGUAGE]
    ).split()
)


def computes(name: str) -> bool:
    """Whether ATen's operator `name`, without its overload, may be run; in place it ends in "_"."""
    return name in ATEN or name.removesuffix("_") in ATEN

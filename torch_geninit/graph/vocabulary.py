"""The primitive operations of an architecture, and which ATen operation is which.

Generators are trained against this list: an index is the row of an embedding. It grows at the end only, and
any change to what an operation is called raises :data:`VERSION`.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = 1

PRIMITIVES: Final[tuple[str, ...]] = (
    "input",
    "output",
    "conv",
    "conv_transpose",
    "linear",
    "embedding",
    "batch_norm",
    "layer_norm",
    "group_norm",
    "instance_norm",
    "rms_norm",
    "attention",
    "recurrent",
    "max_pool",
    "avg_pool",
    "global_avg_pool",
    "add",
    "mul",
    "concat",
    "matmul",
    "pad",
    "resample",
    "softmax",
    "relu",
    "gelu",
    "silu",
    "sigmoid",
    "tanh",
    "activation",
    "bias",
    "scale",
    "token",
    "other",
)


def _table(**rows: str) -> dict[str, str]:
    return {name: row for row, names in rows.items() for name in names.split()}


# Rows are rules of tracer/rules.py; most are primitives of the same name. Names are ATen's, without the
# underscore of the in-place form.
RULES: Final[dict[str, str]] = _table(
    view="""alias as_strided chunk detach diagonal expand expand_as lift_fresh movedim narrow
        permute pin_memory reshape select slice split split_with_sizes squeeze t transpose unbind unfold
        unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze view view_as view_as_complex view_as_real
        _conj _neg_view _reshape_alias _unsafe_view real imag swapaxes""",
    move="""_to_copy clone pin_memory contiguous dropout feature_dropout native_dropout flip gather index
        index_select lift masked_select pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
        repeat repeat_interleave roll rot90 take take_along_dim to_dense tril triu im2col col2im diag_embed
        diag resolve_conj resolve_neg _pack_padded_sequence _pad_packed_sequence to_sparse _to_dense
        slice_scatter select_scatter copy index_put _unsafe_index _unsafe_index_put scatter index_copy
        masked_scatter masked_fill where select_backward slice_backward broadcast_tensors set _index_put_impl
        bernoulli fill zero""",
    conv="""convolution _convolution convolution_overrideable mkldnn_convolution cudnn_convolution thnn_conv2d
        _slow_conv2d_forward slow_conv3d_forward _conv_depthwise2d conv_depthwise3d""",
    linear="addmm mm bmm addbmm baddbmm mv addmv dot vdot _trilinear linear addr _addmm_activation",
    embedding="embedding _embedding_bag _embedding_bag_forward_only",
    batch_norm="""native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit
        _native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update""",
    layer_norm="native_layer_norm",
    group_norm="native_group_norm",
    rms_norm="_fused_rms_norm rms_norm",
    attention="""_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
        _scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math
        _scaled_dot_product_attention_math_for_mps _flash_attention_forward _efficient_attention_forward
        _native_multi_head_attention _transformer_encoder_layer_fwd""",
    recurrent="""mkldnn_rnn_layer _cudnn_rnn miopen_rnn _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm gru
        rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell quantized_lstm quantized_gru""",
    max_pool="""max_pool2d_with_indices max_pool3d_with_indices max_pool1d_with_indices max_pool2d
        adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d
        mkldnn_max_pool2d""",
    avg_pool="""avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
        mkldnn_adaptive_avg_pool2d""",
    reduce="mean sum amax amin max min var std var_mean std_mean logsumexp norm linalg_vector_norm",
    add="add sub rsub subtract addcmul addcdiv lerp",
    mul="mul div multiply divide true_divide",
    concat="cat stack hstack vstack concat concatenate",
    pad="""constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
        replication_pad2d replication_pad3d""",
    resample="""upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d
        upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_nearest_exact1d
        _upsample_nearest_exact2d _upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
        grid_sampler_2d grid_sampler_3d""",
    softmax="_softmax _safe_softmax softmax _log_softmax log_softmax",
    relu="relu relu6",
    gelu="gelu",
    silu="silu",
    sigmoid="sigmoid",
    tanh="tanh",
    activation="""abs absolute acos acosh asin asinh atan atanh atan2 ceil celu clamp clamp_max clamp_min clip
        cos cosh elu erf erfc exp exp2 expm1 floor glu hardshrink hardsigmoid hardswish hardtanh leaky_relu
        log log10 log1p log2 log_sigmoid log_sigmoid_forward mish _prelu_kernel prelu pow reciprocal round
        rrelu rrelu_with_noise rrelu_with_noise_functional rsqrt selu sgn sign sin sinc sinh softplus
        softshrink sqrt square threshold tan trunc frac erfinv lgamma digamma i0 logit nan_to_num
        maximum minimum floor_divide fmod remainder""",
    affine="neg negative positive",
    constant="""arange empty empty_strided eye full linspace logspace new_empty new_empty_strided new_full
        new_ones new_zeros ones rand randint randn randperm scalar_tensor zeros tril_indices triu_indices
        empty_like full_like ones_like zeros_like rand_like randn_like randint_like normal uniform random
        exponential sym_size sym_stride sym_numel sym_storage_offset is_same_size _has_same_storage_numel
        hann_window hamming_window""",
)
"""ATen operation name -> rule; what is not listed is ``other``."""

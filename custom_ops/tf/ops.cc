// Interfaces of the ops: inputs, attributes and shapes. What they compute is said in layers/layers.h.
//
// `out_type` says which tensors of the epilogue are read: multiplier and shift, or factor, for int8; float_scale for
// float; `has_residual` whether the residual is. Those that are not read are empty, as are an absent bias and absent
// scales.
#include <cstdint>
#include <string>
#include <vector>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tf/guard.h"

namespace keras_lowbit {
namespace {

using ::tensorflow::shape_inference::DimensionHandle;
using ::tensorflow::shape_inference::InferenceContext;
using ::tensorflow::shape_inference::ShapeHandle;
using Status = absl::Status;

// The attribute `name` with exactly `count` numbers of at least `low`.
Status Numbers(InferenceContext* c, const char* name, size_t count, int64_t low, std::vector<int64_t>* numbers) {
  TF_RETURN_IF_ERROR(c->GetAttr(name, numbers));
  if (numbers->size() != count) {
    return absl::InvalidArgumentError(absl::StrCat(name, " has ", numbers->size(), " numbers; expected ", count));
  }
  for (int64_t number : *numbers) {
    if (number < low)
      return absl::InvalidArgumentError(absl::StrCat(name, " holds ", number, "; expected at least ", low));
  }
  return absl::OkStatus();
}

Status OutSize(InferenceContext* c, DimensionHandle in, int64_t kernel, int64_t stride, int64_t dilation,
               const std::string& padding, int64_t pads, DimensionHandle* out) {
  constexpr int64_t kMaxSide = int64_t{1} << 30;
  if (kernel > kMaxSide || stride > kMaxSide || dilation > kMaxSide || pads > kMaxSide) {
    return absl::InvalidArgumentError("kernel, strides, dilations and paddings are 2**30 at most");
  }
  *out = c->UnknownDim();
  if (!c->ValueKnown(in)) return absl::OkStatus();
  const int64_t size = c->Value(in);
  if (padding == "SAME") {
    *out = c->MakeDim((size + stride - 1) / stride);
    return absl::OkStatus();
  }
  const int64_t room = size + (padding == "EXPLICIT" ? pads : 0) - (kernel - 1) * dilation - 1;
  *out = c->MakeDim(room < 0 || size == 0 ? 0 : room / stride + 1);
  return absl::OkStatus();
}

// [N, H, W, C] -> [N, H', W', channels] for a window of rows x columns.
Status Sliding(InferenceContext* c, ShapeHandle input, int64_t rows, int64_t columns, DimensionHandle channels) {
  std::vector<int64_t> strides, dilations, pads;
  std::string padding;
  TF_RETURN_IF_ERROR(c->GetAttr("padding", &padding));
  TF_RETURN_IF_ERROR(Numbers(c, "strides", 2, 1, &strides));
  TF_RETURN_IF_ERROR(Numbers(c, "dilations", 2, 1, &dilations));
  TF_RETURN_IF_ERROR(Numbers(c, "explicit_paddings", padding == "EXPLICIT" ? 4 : 0, 0, &pads));
  pads.resize(4);
  DimensionHandle height, width;
  TF_RETURN_IF_ERROR(OutSize(c, c->Dim(input, 1), rows, strides[0], dilations[0], padding, pads[0] + pads[1], &height));
  TF_RETURN_IF_ERROR(
      OutSize(c, c->Dim(input, 2), columns, strides[1], dilations[1], padding, pads[2] + pads[3], &width));
  c->set_output(0, c->MakeShape({c->Dim(input, 0), height, width, channels}));
  return absl::OkStatus();
}

Status CheckPacked(InferenceContext* c, int codes) {
  ShapeHandle unused;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(codes), 3, &unused));
  return c->WithRank(c->input(codes + 2), 1, &unused);
}

Status ConvShapes(InferenceContext* c) {
  ShapeHandle input;
  std::vector<int64_t> kernel;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &input));
  TF_RETURN_IF_ERROR(CheckPacked(c, 1));
  TF_RETURN_IF_ERROR(Numbers(c, "kernel_shape", 4, 1, &kernel));
  return Sliding(c, input, kernel[0], kernel[1], c->MakeDim(kernel[3]));
}

Status DenseShapes(InferenceContext* c) {
  ShapeHandle input, output;
  std::vector<int64_t> kernel;
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(0), 1, &input));
  TF_RETURN_IF_ERROR(CheckPacked(c, 1));
  TF_RETURN_IF_ERROR(Numbers(c, "kernel_shape", 4, 1, &kernel));
  if (!c->RankKnown(input)) {
    c->set_output(0, c->UnknownShape());
    return absl::OkStatus();
  }
  TF_RETURN_IF_ERROR(c->ReplaceDim(input, -1, c->MakeDim(kernel[3]), &output));
  c->set_output(0, output);
  return absl::OkStatus();
}

Status DepthwiseShapes(InferenceContext* c) {
  ShapeHandle input, kernel;
  DimensionHandle channels;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &input));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &kernel));
  TF_RETURN_IF_ERROR(c->Multiply(c->Dim(kernel, 2), c->Dim(kernel, 3), &channels));
  if (!c->ValueKnown(c->Dim(kernel, 0)) || !c->ValueKnown(c->Dim(kernel, 1))) {
    c->set_output(0, c->MakeShape({c->Dim(input, 0), c->UnknownDim(), c->UnknownDim(), channels}));
    return absl::OkStatus();
  }
  return Sliding(c, input, c->Value(c->Dim(kernel, 0)), c->Value(c->Dim(kernel, 1)), channels);
}

Status PoolShapes(InferenceContext* c) {
  ShapeHandle input;
  std::vector<int64_t> window;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &input));
  TF_RETURN_IF_ERROR(Numbers(c, "window", 2, 1, &window));
  return Sliding(c, input, window[0], window[1], c->Dim(input, 3));
}

Status PairShapes(InferenceContext* c) {
  ShapeHandle merged;
  TF_RETURN_IF_ERROR(c->Merge(c->input(0), c->input(1), &merged));
  c->set_output(0, merged);
  return absl::OkStatus();
}

}  // namespace

#define KLB_EPILOGUE                               \
  Input("bias: int32")                             \
      .Input("multiplier: int32")                  \
      .Input("shift: int32")                       \
      .Input("factor: double")                     \
      .Input("float_scale: float")                 \
      .Input("residual: int8")                     \
      .Output("output: out_type")                  \
      .Attr("out_type: {int8, int32, float}")      \
      .Attr("input_zero_point: int = 0")           \
      .Attr("zero_point: int = 0")                 \
      .Attr("low: int = -128")                     \
      .Attr("high: int = 127")                     \
      .Attr("float_low: float = -3.402823466e38")  \
      .Attr("float_high: float = 3.402823466e38")  \
      .Attr("has_residual: bool = false")          \
      .Attr("residual_zero_point: int = 0")        \
      .Attr("residual_first_multiplier: int = 0")  \
      .Attr("residual_first_shift: int = 0")       \
      .Attr("residual_second_multiplier: int = 0") \
      .Attr("residual_second_shift: int = 0")      \
      .Attr("residual_output_multiplier: int = 0") \
      .Attr("residual_output_shift: int = 0")      \
      .Attr("residual_output_zero_point: int = 0") \
      .Attr("residual_low: int = -128")            \
      .Attr("residual_high: int = 127")

#define KLB_WEIGHTS                        \
  Input("codes: uint8")                    \
      .Input("scales: int8")               \
      .Input("sums: int32")                \
      .Attr("layout: {'ternary', 'int8'}") \
      .Attr("kernel_shape: list(int)")     \
      .Attr("cluster_size: int = 0")       \
      .Attr("scales_per_tap: bool = false")

#define KLB_WINDOW                                    \
  Attr("strides: list(int) = [1, 1]")                 \
      .Attr("dilations: list(int) = [1, 1]")          \
      .Attr("padding: {'SAME', 'VALID', 'EXPLICIT'}") \
      .Attr("explicit_paddings: list(int) = []")

REGISTER_OP("KerasLowbit>PackedConv2D")
    .Input("input: int8")
    .KLB_WEIGHTS.KLB_EPILOGUE.KLB_WINDOW.Attr("groups: int = 1")
    .SetShapeFn(GuardedShapes<ConvShapes>)
    .Doc("Convolution of int8 codes with packed ternary or int8 weights: keras_lowbit.ops.clustered_ternary_conv2d.");

REGISTER_OP("KerasLowbit>PackedDense")
    .Input("input: int8")
    .KLB_WEIGHTS.KLB_EPILOGUE.SetShapeFn(GuardedShapes<DenseShapes>)
    .Doc("Product of int8 codes with packed ternary or int8 weights: keras_lowbit.ops.ternary_dense.");

REGISTER_OP("KerasLowbit>DepthwiseConv2D")
    .Input("input: int8")
    .Input("kernel: int8")
    .KLB_EPILOGUE.KLB_WINDOW.SetShapeFn(GuardedShapes<DepthwiseShapes>)
    .Doc("Depthwise convolution of int8 codes: keras_lowbit.ops.int8_depthwise_conv2d.");

REGISTER_OP("KerasLowbit>MaxPool2D")
    .Input("input: int8")
    .Output("output: int8")
    .Attr("window: list(int)")
    .Attr("padding_code: int = -128")
    .Attr("low: int = -128")
    .Attr("high: int = 127")
    .KLB_WINDOW.SetShapeFn(GuardedShapes<PoolShapes>)
    .Doc("Largest code of each window; pixels outside the image count as padding_code.");

REGISTER_OP("KerasLowbit>LookUp")
    .Input("input: int8")
    .Input("table: int8")
    .Output("output: int8")
    .SetShapeFn(GuardedShapes<tensorflow::shape_inference::UnchangedShape>)
    .Doc("table[code + 128] of every code; table: [256].");

REGISTER_OP("KerasLowbit>LookUpPair")
    .Input("first: int8")
    .Input("second: int8")
    .Input("table: int8")
    .Output("output: int8")
    .SetShapeFn(GuardedShapes<PairShapes>)
    .Doc("table[first + 128, second + 128] of codes of equal shapes; table: [256, 256].");

}  // namespace keras_lowbit

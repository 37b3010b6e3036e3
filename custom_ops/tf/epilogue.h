// The epilogue of a layer's op: its attributes, and the tensors of each call.
#pragma once

#include "core/epilogue.h"
#include "layers/fp32_residual.h"
#include "tf/attributes.h"

namespace keras_lowbit {

// How far from one channel's value to the next: 0 where a tensor that cannot be read here has a single one.
struct BorrowedSteps {
  int32_t multiplier = 1, shift = 1, factor = 1, float_scale = 1;
};

// What one call hands to a device's kernels beside input and weights: borrowed where a tensor has one value for each
// channel; where it has a single one, spread into a store of its own, or with a step of 0.
struct BorrowedEpilogue {
  Epilogue epilogue;
  BorrowedSteps steps;
  std::vector<int32_t> multiplier, shift;
  std::vector<double> factor;
  std::vector<float> scale;
};

template <typename T>
absl::Status PerChannel(const Tensor& tensor, const char* name, int64_t channels, std::vector<T>* store,
                        const T** values, int32_t* step) {
  const int64_t count = tensor.NumElements();
  if (count != channels && count != 1 && count != 0) {
    return absl::InvalidArgumentError(absl::StrCat(name, " has ", count, " values; expected ", channels,
                                                   " (one for each output channel), 1 or none"));
  }
  *values = count == 0 ? nullptr : static_cast<const T*>(tensor.data());
  if (count == 1 && channels != 1) {
    *step = 0;
    if (store == nullptr) return absl::OkStatus();
    *step = 1;
    store->assign(channels, **values);
    *values = store->data();
  }
  return absl::OkStatus();
}

// Attributes of the epilogue, read once. Its inputs follow one another in the order of ops.cc; asked for by number,
// since a search by name costs as much as all the checks.
class OpEpilogue {
 public:
  enum Input { kBias, kMultiplier, kShift, kFactor, kFloatScale, kResidual };

  // first_input: the number of the bias among the op's inputs. reads_tensors: their values are in this process's memory.
  OpEpilogue(int first_input, bool reads_tensors) : first_input_(first_input), reads_tensors_(reads_tensors) {}

  absl::Status Init(OpKernelConstruction* context) {
    tensorflow::DataType type;
    TF_RETURN_IF_ERROR(context->GetAttr("out_type", &type));
    base_.type = type == tensorflow::DT_INT8    ? OutputType::kInt8
                 : type == tensorflow::DT_INT32 ? OutputType::kInt32
                                                : OutputType::kFloat;
    TF_RETURN_IF_ERROR(ReadInt32(context, "input_zero_point", &input_zero_point));
    TF_RETURN_IF_ERROR(ReadInt32(context, "zero_point", &base_.requantize.zero_point));
    TF_RETURN_IF_ERROR(ReadInt32(context, "low", &base_.requantize.clamp_min));
    TF_RETURN_IF_ERROR(ReadInt32(context, "high", &base_.requantize.clamp_max));
    TF_RETURN_IF_ERROR(context->GetAttr("float_low", &base_.float_min));
    TF_RETURN_IF_ERROR(context->GetAttr("float_high", &base_.float_max));
    TF_RETURN_IF_ERROR(context->GetAttr("has_residual", &has_residual_));
    return has_residual_ ? InitResidual(context) : absl::OkStatus();
  }

  // Checks and borrows the tensors of one call whose output has that shape.
  absl::Status Borrow(OpKernelContext* context, int64_t channels, const TensorShape& output,
                      BorrowedEpilogue* borrowed) const {
    Epilogue& epilogue = borrowed->epilogue = base_;
    Requantize& r = epilogue.requantize;
    const auto input = [&](Input which) -> const Tensor& { return context->input(first_input_ + which); };
    TF_RETURN_IF_ERROR(BorrowBias(input(kBias), channels, &epilogue.bias));
    const auto per_channel = [&](Input which, const char* name, auto* store, auto** values, int32_t* step) {
      return PerChannel(input(which), name, channels, reads_tensors_ ? store : nullptr, values, step);
    };
    BorrowedSteps& steps = borrowed->steps;
    TF_RETURN_IF_ERROR(per_channel(kMultiplier, "multiplier", &borrowed->multiplier, &r.multiplier, &steps.multiplier));
    TF_RETURN_IF_ERROR(per_channel(kShift, "shift", &borrowed->shift, &r.shift, &steps.shift));
    TF_RETURN_IF_ERROR(per_channel(kFactor, "factor", &borrowed->factor, &r.factor, &steps.factor));
    TF_RETURN_IF_ERROR(
        per_channel(kFloatScale, "float_scale", &borrowed->scale, &epilogue.float_scale, &steps.float_scale));
    TF_RETURN_IF_ERROR(CheckComplete(epilogue));
    if (!has_residual_) return absl::OkStatus();
    const Tensor& residual = input(kResidual);
    if (residual.shape() != output) {
      return absl::InvalidArgumentError(absl::StrCat("the residual has shape ", residual.shape().DebugString(),
                                                     "; expected the output's, ", output.DebugString()));
    }
    epilogue.residual.codes = static_cast<const int8_t*>(residual.data());
    return absl::OkStatus();
  }

  // The output, in the residual's memory where nobody else reads that any more: each code is read before it is written.
  absl::Status Allocate(OpKernelContext* context, const TensorShape& shape, Tensor** output) const {
    if (!has_residual_) return context->allocate_output(0, shape, output);
    return context->forward_input_or_allocate_output({first_input_ + kResidual}, 0, shape, output);
  }

  int32_t input_zero_point = 0;

 private:
  absl::Status InitResidual(OpKernelConstruction* context) {
    if (base_.type != OutputType::kInt8) return absl::InvalidArgumentError("a residual needs int8 outputs");
    ResidualAdd& add = base_.residual;
    const std::pair<const char*, int32_t*> numbers[] = {{"residual_zero_point", &add.zero_point},
                                                        {"residual_first_multiplier", &add.first_multiplier},
                                                        {"residual_first_shift", &add.first_shift},
                                                        {"residual_second_multiplier", &add.second_multiplier},
                                                        {"residual_second_shift", &add.second_shift},
                                                        {"residual_output_multiplier", &add.output_multiplier},
                                                        {"residual_output_shift", &add.output_shift},
                                                        {"residual_output_zero_point", &add.output_zero_point},
                                                        {"residual_low", &add.clamp_min},
                                                        {"residual_high", &add.clamp_max}};
    for (const auto& [name, value] : numbers) TF_RETURN_IF_ERROR(ReadInt32(context, name, value));
    add.fp32 = FindFp32Residual(base_.requantize, add);
    return absl::OkStatus();
  }

  static absl::Status BorrowBias(const Tensor& tensor, int64_t channels, const int32_t** bias) {
    const int64_t count = tensor.NumElements();
    *bias = count == 0 ? nullptr : static_cast<const int32_t*>(tensor.data());
    if (count == 0 || count == channels) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("bias has ", count, " values; expected ", channels, " or none"));
  }

  static absl::Status CheckComplete(const Epilogue& epilogue) {
    const Requantize& r = epilogue.requantize;
    const bool fixed = r.multiplier != nullptr && r.shift != nullptr && r.factor == nullptr;
    const bool once = r.multiplier == nullptr && r.shift == nullptr && r.factor != nullptr;
    if (epilogue.type == OutputType::kInt8 && !fixed && !once) {
      return absl::InvalidArgumentError("int8 outputs need multiplier and shift, or factor: one of the two");
    }
    if (epilogue.type == OutputType::kFloat && epilogue.float_scale == nullptr) {
      return absl::InvalidArgumentError("float outputs need float_scale");
    }
    return absl::OkStatus();
  }

  const int first_input_;
  const bool reads_tensors_;
  Epilogue base_;
  bool has_residual_ = false;
};

}  // namespace keras_lowbit

// The CUDA kernels' bodies with every warp in a thread of its own: under ThreadSanitizer a missing barrier is a race.
#include "test/emulated_layer.h"
#include "test/random_layers.h"

namespace keras_lowbit::test {
namespace {

void CheckThreaded(int64_t size, bool has_scales, int processors) {
  Random random(3);
  Layer layer;
  layer.shape.in_height = layer.shape.in_width = size;
  layer.shape.in_channels = 144;
  layer.shape.out_channels = 70;
  layer.shape.kernel_height = layer.shape.kernel_width = size == 1 ? 1 : 3;
  layer.cluster_size = 16;
  layer.has_scales = has_scales;
  const auto data = Draw(layer, random);
  const auto want = Wanted(layer, *data);
  std::vector<uint8_t> y(4 * want.size());
  cuda::ConvCall call;
  call.input = data->x.data();
  call.epilogue = data->epilogue;
  call.output = y.data();
  KLB_CHECK_OK(cuda::EmulateConv(layer.shape, data->weights, call, {processors, {cuda::EmulateMma, has_scales}, true}));
  CheckEqual(layer, y, want, "threaded CUDA emulation");
}

}  // namespace
}  // namespace keras_lowbit::test

int main() {
  for (int64_t size : {1, 6, 13}) {
    for (bool has_scales : {false, true}) {
      for (int processors : {1, 132}) keras_lowbit::test::CheckThreaded(size, has_scales, processors);
    }
  }
  return 0;
}

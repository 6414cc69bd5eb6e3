// The calls of roi_align.h on host memory, block after block and thread after thread, without a device or a
// CUDA compiler: for tests of the bodies. Very slow.
#include <memory>
#include <type_traits>

#include "launch.h"

namespace keras_mrcnn {
namespace {

struct Launcher {
  void* stream;

  template <typename Body>
  int32_t run(const Body& body) {
    // Fewer blocks than there is work, so that blocks go on to a second piece; what they find in shared
    // memory is what the one before left there.
    const int64_t blocks = body.blocks() > 3 ? body.blocks() / 2 + 1 : body.blocks();
    std::unique_ptr<typename Body::Shared> shared(new typename Body::Shared);
    for (int64_t index = blocks - 1; index >= 0; --index) {
      HostBlock block(index, blocks);
      body(block, *shared);
    }
    return 0;
  }
};

const char* message(int32_t status) { return status == 0 ? "no error" : "an error"; }

}  // namespace
}  // namespace keras_mrcnn

#include "calls.h"

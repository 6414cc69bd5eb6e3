// The bodies of the CUDA kernels in as many threads as a block has, with real barriers: for ThreadSanitizer,
// which reports memory that two threads touch without a barrier between them. The calls are small and go
// through each loop of the bodies more than once.
#include <pthread.h>

#include <cstdio>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "cuda/launch.h"

namespace keras_mrcnn {
namespace {

// What the threads of a block share beside Body::Shared.
struct Meeting {
  Meeting() { pthread_barrier_init(&barrier, nullptr, kThreads); }
  ~Meeting() { pthread_barrier_destroy(&barrier); }
  pthread_barrier_t barrier;
  int32_t values[kThreads];
};

class ThreadBlock {
 public:
  template <typename T>
  struct Own {
    T& operator[](int) { return value; }
    T value;
  };

  ThreadBlock(int thread, int64_t count, Meeting* meeting)
      : thread_(thread), count_(count), meeting_(meeting) {}
  int64_t index() const { return 0; }
  int64_t count() const { return count_; }
  void sync() { pthread_barrier_wait(&meeting_->barrier); }

  template <typename Work>
  void run(Work work) {
    work(thread_);
  }

  template <typename Value>
  int compact(int32_t* list, Value value) {
    const int32_t item = value(thread_);
    meeting_->values[thread_] = item;
    sync();
    int before = 0, total = 0;
    for (int k = 0; k < kThreads; ++k) {
      before += k < thread_ && meeting_->values[k] >= 0;
      total += meeting_->values[k] >= 0;
    }
    if (item >= 0) list[before] = item;
    sync();
    return total;
  }

  template <typename Value, typename Operation>
  int32_t reduce(Value value, Operation operation) {
    meeting_->values[thread_] = value(thread_);
    sync();
    int32_t result = meeting_->values[0];
    for (int k = 1; k < kThreads; ++k) result = operation(result, meeting_->values[k]);
    sync();
    return result;
  }

 private:
  int thread_;
  int64_t count_;
  Meeting* meeting_;
};

struct Launcher {
  void* stream;

  template <typename Body>
  int32_t run(const Body& body) {
    // One block does all the work, so that each piece meets what the one before left.
    std::unique_ptr<typename Body::Shared> shared(new typename Body::Shared);
    Meeting meeting;
    std::vector<std::thread> threads;
    for (int thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&, thread] {
        ThreadBlock block(thread, 1, &meeting);
        body(block, *shared);
      });
    }
    for (std::thread& thread : threads) thread.join();
    return 0;
  }
};

const char* message(int32_t status) { return status == 0 ? "no error" : "an error"; }

}  // namespace
}  // namespace keras_mrcnn

#include "cuda/calls.h"

namespace {

int32_t calls(int64_t regions, RoiReduction reduction) {
  RoiAlignParameters p = {};
  p.batch = 2, p.channels = 40, p.regions = regions, p.output_height = 2, p.output_width = 18;
  p.sampling_ratio = 9, p.method = ROI_ALIGN, p.reduction = reduction, p.type = ROI_FLOAT32, p.levels = 1;
  p.level[0] = {9, 7, 1.0f};
  std::vector<float> boxes, map(p.batch * 9 * 7 * p.channels, 1.0f), gradient(map.size());
  std::vector<float> output(regions * 2 * 18 * p.channels);
  std::vector<int32_t> images;
  for (int64_t k = 0; k < regions; ++k) {
    boxes.insert(boxes.end(), {-1.0f, 0.1f * static_cast<float>(k % 50), 6.5f, 8.0f});
    images.push_back(k % 16 == 0);
  }
  const void* maps[] = {map.data()};
  void* gradients[] = {gradient.data()};
  int32_t bad = 0;
  int32_t status = keras_mrcnn_roi_align_cuda_check(&p, images.data(), nullptr, &bad, nullptr);
  if (regions < 20) {  // one block takes them one after another
    status |= keras_mrcnn_roi_align_cuda_forward(&p, maps, boxes.data(), images.data(), nullptr,
                                                 output.data(), nullptr);
  }
  std::vector<char> workspace(keras_mrcnn_roi_align_cuda_workspace(&p));
  return status | keras_mrcnn_roi_align_cuda_backward(&p, maps, boxes.data(), images.data(), nullptr,
                                                      output.data(), gradients, workspace.data(), nullptr);
}

}  // namespace

int main() {
  const int32_t status = calls(3, ROI_AVERAGE) | calls(3, ROI_MAXIMUM) | calls(300, ROI_AVERAGE);
  std::printf("status %d\n", status);
  return status;
}

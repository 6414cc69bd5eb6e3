#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "roi_align.h"

void keras_mrcnn_parallel_for(void* context, int64_t total, int64_t,
                              void (*work)(void* work_context, int64_t begin, int64_t end),
                              void* work_context) {
  const int64_t count = std::max<int64_t>(1, std::min(*static_cast<const int64_t*>(context), total));
  const int64_t piece = std::max<int64_t>(1, total / (8 * count));  // so that no thread waits long for another
  std::atomic<int64_t> next{0};
  const auto take_pieces = [&] {
    for (int64_t begin; (begin = next.fetch_add(piece)) < total;) {
      work(work_context, begin, std::min(begin + piece, total));
    }
  };
  std::vector<std::thread> threads;
  for (int64_t k = 1; k < count; ++k) threads.emplace_back(take_pieces);
  take_pieces();
  for (std::thread& thread : threads) thread.join();
}

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include <omp.h>

#include "cards/kernels/kernels.hpp"

namespace orrery::cards {

std::byte* Scratch::take(std::uint64_t bytes) {
  if (used_ == buffers_.size()) buffers_.emplace_back();
  auto& buffer = buffers_[used_++];
  const auto lines = (bytes + sizeof(Line) - 1) / sizeof(Line);
  if (buffer.size() < lines) buffer.resize(lines);
  return reinterpret_cast<std::byte*>(buffer.data());
}

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable work_came, work_ended;
  std::uint64_t generation = 0;  // Counts calls of parallel_for.
  std::uint32_t busy = 0;        // Helpers that have not finished the current generation.
  bool stopping = false;

  // The current call; written under the mutex before the generation advances.
  const std::function<void(std::uint64_t, Scratch&)>* tile = nullptr;
  std::uint64_t count = 0;
  std::atomic<std::uint64_t> next{0};

  std::vector<Scratch> scratch;  // [0] is the caller's.
  std::vector<std::thread> helpers;

  void take_tiles(Scratch& mine) {
    for (auto i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      mine.release(0);
      (*tile)(i, mine);
    }
  }

  void help(Scratch& mine) {
    omp_set_num_threads(1);  // oneDNN must not start threads of its own inside a tile.
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex);
    while (true) {
      work_came.wait(lock, [&] { return stopping || generation != seen; });
      if (stopping) return;
      seen = generation;
      lock.unlock();
      take_tiles(mine);
      lock.lock();
      if (--busy == 0) work_ended.notify_one();
    }
  }
};

ThreadPool::ThreadPool(std::uint32_t threads) : state_(std::make_unique<State>()) {
  const auto count = threads == 0 ? 1 : threads;
  state_->scratch.resize(count);
  for (std::uint32_t i = 1; i < count; ++i)
    state_->helpers.emplace_back([state = state_.get(), i] { state->help(state->scratch[i]); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->work_came.notify_all();
  for (auto& helper : state_->helpers) helper.join();
}

std::uint32_t ThreadPool::thread_count() const { return static_cast<std::uint32_t>(state_->scratch.size()); }

std::uint64_t ThreadPool::scratch_bytes() const {
  std::uint64_t sum = 0;
  for (const auto& scratch : state_->scratch) sum += scratch.bytes();
  return sum;
}

void ThreadPool::parallel_for(std::uint64_t count, const std::function<void(std::uint64_t, Scratch&)>& tile) {
  omp_set_num_threads(1);  // For the calling thread; the setting is per thread.
  auto& state = *state_;
  if (count <= 1 || state.helpers.empty()) {
    for (std::uint64_t i = 0; i < count; ++i) {
      state.scratch[0].release(0);
      tile(i, state.scratch[0]);
    }
    return;
  }
  {
    const std::lock_guard lock(state.mutex);
    state.tile = &tile;
    state.count = count;
    state.next = 0;
    state.busy = static_cast<std::uint32_t>(state.helpers.size());
    ++state.generation;
  }
  state.work_came.notify_all();
  state.take_tiles(state.scratch[0]);
  std::unique_lock lock(state.mutex);
  state.work_ended.wait(lock, [&] { return state.busy == 0; });
}

}  // namespace orrery::cards

#include "cards/faulty_card.hpp"

#include <algorithm>
#include <csignal>
#include <list>
#include <set>

namespace orrery::cards {
namespace {

void flip_one_bit(std::span<std::byte> bytes, Random& random) {
  if (bytes.empty()) return;
  bytes[random.below(bytes.size())] ^= static_cast<std::byte>(1U << random.below(8));
}

/// Which bit of a tensor is wrong: bit `draw` modulo its bits, of one element.
struct WrongBit {
  std::uint64_t element = 0, draw = 0;
};

/// Shows copies with a wrong bit in place of some tensors.
class FlippedSource final : public WeightSource {
public:
  FlippedSource(const WeightSource& inner, std::map<std::string, WrongBit> wrong) : inner_(inner), wrong_(std::move(wrong)) {}

  Result<TensorView> tensor(const std::string& name) const override {
    ORRERY_TRY(view, inner_.tensor(name));
    const auto found = wrong_.find(name);
    const auto size = size_of(view.dtype);
    if (found == wrong_.end() || found->second.element >= element_count(view.shape)) return view;
    const std::lock_guard lock(mutex_);
    auto& copy = copies_.emplace_back(view.data, view.data + view.bytes());
    const auto bit = found->second.draw % (size * 8);
    copy[found->second.element * size + bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    auto flipped = view;
    flipped.data = copy.data();
    return flipped;
  }

  void release(std::span<const std::byte> part) const override {
    const std::lock_guard lock(mutex_);
    const auto is_copy = [&](const auto& copy) { return part.data() >= copy.data() && part.data() < copy.data() + copy.size(); };
    if (std::none_of(copies_.begin(), copies_.end(), is_copy)) inner_.release(part);
  }

private:
  const WeightSource& inner_;
  const std::map<std::string, WrongBit> wrong_;
  mutable std::mutex mutex_;
  mutable std::list<std::vector<std::byte>> copies_;  // Live as long as this load.
};

}  // namespace

void FaultyCard::refresh() {
  active_ = factor_ > 1 || hanging_ || refusing_ || aborted_ || failing_ || weight_flips_.left > 0 || activation_flips_.left > 0 ||
            crash_after_;
}

void FaultyCard::slow(double factor) {
  const std::lock_guard lock(mutex_);
  factor_ = std::max(1.0, factor);
  refresh();
}

void FaultyCard::hang() {
  const std::lock_guard lock(mutex_);
  hanging_ = true;
  refresh();
}

void FaultyCard::fail(Error error, std::uint64_t times) {
  const std::lock_guard lock(mutex_);
  failing_ = Failing{std::move(error), times, times == 0};
  refresh();
}

void FaultyCard::refuse_memory() {
  const std::lock_guard lock(mutex_);
  refusing_ = true;
  refresh();
}

void FaultyCard::flip_weights(std::uint64_t count, std::uint64_t seed) {
  const std::lock_guard lock(mutex_);
  weight_flips_ = {count, Random(seed)};
  refresh();
}

void FaultyCard::flip_activations(std::uint64_t count, std::uint64_t seed) {
  const std::lock_guard lock(mutex_);
  activation_flips_ = {count, Random(seed)};
  refresh();
}

void FaultyCard::crash_while_loading(std::uint64_t after_bytes) {
  const std::lock_guard lock(mutex_);
  crash_after_ = after_bytes;
  refresh();
}

void FaultyCard::heal() {
  const std::lock_guard lock(mutex_);
  factor_ = 1;
  hanging_ = refusing_ = false;
  failing_.reset();
  weight_flips_.left = activation_flips_.left = 0;
  crash_after_.reset();
  ++heals_;
  refresh();
  changed_.notify_all();
}

void FaultyCard::abort() {
  const std::lock_guard lock(mutex_);
  aborted_ = true;
  ++heals_;
  refresh();
  changed_.notify_all();
}

CardFaultCounts FaultyCard::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

Status FaultyCard::enter(std::unique_lock<std::mutex>& lock) {
  if (hanging_ && !aborted_) {
    ++counts_.calls_hung;
    changed_.wait(lock, [&] { return !hanging_ || aborted_; });
  }
  if (aborted_) return Error{ErrorCode::peer_lost, "card " + options().name + " was given up"};
  return Done{};
}

Error FaultyCard::refused() {
  ++counts_.calls_refused;
  return {ErrorCode::card_memory_exhausted, "card " + options().name + " refuses memory: an injected fault"};
}

Status FaultyCard::stream_weights(std::shared_ptr<const WeightSet> weights, std::shared_ptr<const WeightSource> source) {
  const auto total = weights->bytes();
  if (on_load_) on_load_(0, total);
  if (active_.load(std::memory_order_relaxed)) {
    std::unique_lock lock(mutex_);
    ORRERY_TRY_DONE(enter(lock));
    if (refusing_) return refused();
  }
  ORRERY_TRY_DONE(inner_->stream_weights(std::move(weights), std::move(source)));
  if (on_load_) on_load_(total, total);
  return Done{};
}

Status FaultyCard::load_weights(std::shared_ptr<const WeightSet> weights, const WeightSource& source,
                                const std::function<bool(std::uint64_t)>& progress) {
  const auto total = weights->bytes();
  if (on_load_) on_load_(0, total);
  std::map<std::string, WrongBit> wrong;
  if (active_.load(std::memory_order_relaxed)) {
    std::unique_lock lock(mutex_);
    ORRERY_TRY_DONE(enter(lock));
    if (refusing_) return refused();
    const auto& specs = weights->weights;
    std::set<std::string> names;
    for (const auto& spec : specs) names.insert(spec.tensor);
    while (weight_flips_.left > 0 && wrong.size() < names.size()) {
      auto& random = weight_flips_.random;
      const auto& spec = specs[random.below(specs.size())];
      if (spec.rows() * spec.columns() == 0) {
        names.erase(spec.tensor);
        continue;
      }
      // Only what this card owns of the tensor; one that was drawn already is drawn again.
      const auto row = spec.row_begin + random.below(spec.rows()), column = spec.column_begin + random.below(spec.columns());
      const auto width = element_count(spec.shape) / std::max<std::uint64_t>(1, spec.shape.empty() ? 1 : spec.shape[0]);
      if (!wrong.emplace(spec.tensor, WrongBit{row * width + column, random.next()}).second) continue;
      --weight_flips_.left;
      ++counts_.bits_flipped;
    }
    refresh();
  }
  const auto heard = [&](std::uint64_t done) {
    if (on_load_) on_load_(done, total);
    if (active_.load(std::memory_order_relaxed)) {
      std::unique_lock lock(mutex_);
      if (crash_after_ && done >= *crash_after_) ::raise(SIGKILL);
      if (!enter(lock).ok()) return false;
    }
    return progress(done);
  };
  if (wrong.empty()) return inner_->load_weights(std::move(weights), source, heard);
  const FlippedSource flipped(source, std::move(wrong));
  return inner_->load_weights(std::move(weights), flipped, heard);
}

Result<LaneId> FaultyCard::open_lane(std::shared_ptr<const ProgramSet> programs) {
  if (active_.load(std::memory_order_relaxed)) {
    std::unique_lock lock(mutex_);
    ORRERY_TRY_DONE(enter(lock));
    if (refusing_) return refused();
  }
  ORRERY_TRY(lane, inner_->open_lane(programs));
  const std::lock_guard lock(mutex_);
  lanes_[lane] = std::move(programs);
  return lane;
}

void FaultyCard::close_lane(LaneId lane) {
  {
    const std::lock_guard lock(mutex_);
    lanes_.erase(lane);
  }
  inner_->close_lane(lane);
}

Status FaultyCard::run(LaneId lane, std::uint32_t program, std::uint32_t begin, std::uint32_t end, const Scalars& scalars) {
  if (!active_.load(std::memory_order_relaxed)) return inner_->run(lane, program, begin, end, scalars);
  bool flipping = false;
  {
    std::unique_lock lock(mutex_);
    ORRERY_TRY_DONE(enter(lock));
    if (failing_) {
      const auto error = failing_->error;
      if (!failing_->always && --failing_->left == 0) failing_.reset();
      ++counts_.runs_failed;
      refresh();
      return error;
    }
    flipping = activation_flips_.left > 0;
  }
  const auto started = clock_.now();
  auto status = flipping ? run_flipping(lane, program, begin, end, scalars) : inner_->run(lane, program, begin, end, scalars);
  const auto taken = clock_.now() - started;
  std::unique_lock lock(mutex_);
  if (factor_ > 1) {
    ++counts_.runs_slowed;
    const auto heals = heals_;
    const std::chrono::duration<double, std::nano> rest(static_cast<double>(taken.count()) * (factor_ - 1));
    // An hour is for ever here, and keeps the sum with `now` in range.
    changed_.wait_for(lock, std::min<std::chrono::duration<double, std::nano>>(rest, std::chrono::hours(1)),
                      [&] { return heals_ != heals; });
  }
  if (status.ok() && hanging_) return enter(lock);
  return status;
}

Status FaultyCard::run_rows(LaneId lane, std::uint32_t program, std::uint32_t command, RowRange rows, const Scalars& scalars) {
  if (active_.load(std::memory_order_relaxed)) {
    std::unique_lock lock(mutex_);
    ORRERY_TRY_DONE(enter(lock));
  }
  return inner_->run_rows(lane, program, command, rows, scalars);
}

Status FaultyCard::run_flipping(LaneId lane, std::uint32_t program, std::uint32_t begin, std::uint32_t end, const Scalars& scalars) {
  std::shared_ptr<const ProgramSet> set;
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = lanes_.find(lane); found != lanes_.end()) set = found->second;
  }
  for (auto at = begin; at < end; ++at) {
    ORRERY_TRY_DONE(inner_->run(lane, program, at, at + 1, scalars));
    if (!set || program >= set->programs.size()) continue;
    const auto& outputs = set->programs[program].commands[at].outputs;
    const std::lock_guard lock(mutex_);
    if (outputs.empty() || activation_flips_.left == 0) continue;
    flip_one_bit(inner_->memory(lane, outputs[activation_flips_.random.below(outputs.size())]), activation_flips_.random);
    --activation_flips_.left;
    ++counts_.bits_flipped;
    refresh();
  }
  return Done{};
}

}  // namespace orrery::cards

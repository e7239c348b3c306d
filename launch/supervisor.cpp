#include "launch/supervisor.hpp"

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <future>
#include <mutex>
#include <thread>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/file.hpp"

namespace orrery::launch {

namespace {

struct Child {
  SupervisedChild plan;
  RestartPolicy policy;
  std::uint32_t life = 0;
  std::optional<Process> process = {};  // While it runs.
  std::optional<Time> due = {};         // When it is started again.
  std::string log_file = {};
  std::uint64_t log_begin = 0;
};

}  // namespace

struct Supervisor::State {
  std::function<void(const ChildEnd&)> on_end;
  int bell = -1;
  std::thread thread;
  std::mutex mutex;
  std::deque<std::function<void()>> tasks;  // Guarded by mutex.
  bool closing = false;                     // Guarded by mutex.

  // The supervisor's thread's own.
  SteadyClock clock;
  std::deque<Child> children;  // Never moved: a child's place is its number.
  bool restarts = true;

  ~State() {
    if (bell >= 0) close(bell);
  }

  void ring() const {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = write(bell, &one, sizeof one);
  }

  /// Runs `work` on the supervisor's thread and waits for it.
  template <class Work>
  auto on_thread(Work work) {
    std::packaged_task<decltype(work())()> task(std::move(work));
    auto done = task.get_future();
    {
      const std::lock_guard lock(mutex);
      tasks.emplace_back([&task] { task(); });
    }
    ring();
    return done.get();
  }

  Status start(Child& child) {
    const auto spec = child.plan.command(child.life++);
    child.due.reset();
    child.log_file = spec.log_file;
    std::error_code missing;
    const auto size = spec.log_file.empty() ? 0 : std::filesystem::file_size(spec.log_file, missing);
    child.log_begin = missing ? 0 : size;
    ORRERY_TRY(process, Process::start(spec));
    child.process.emplace(std::move(process));
    return Done{};
  }

  void tell(std::size_t number, pid_t pid, const ProcessEnd& end, const std::string& how) {
    auto& child = children[number];
    ChildEnd told;
    told.child = number;
    told.pid = pid;
    told.end = end;
    told.how = how;
    told.finished = pid != 0 && end.ok();
    told.log_file = child.log_file;
    told.log_begin = child.log_begin;
    if (restarts && !told.finished) {
      told.restarts_in = child.policy.on_death(clock.now());
      told.quarantined = child.policy.quarantined();
      if (told.restarts_in) child.due = clock.now() + *told.restarts_in;
    }
    on_end(told);
  }

  void look_at(std::size_t number) {
    auto& child = children[number];
    if (!child.process) return;
    const auto end = child.process->ended();
    if (!end) return;
    const auto pid = child.process->id();
    child.process.reset();
    tell(number, pid, *end, end->text());
  }

  void run() {
    std::vector<pollfd> polled;
    for (;;) {
      for (;;) {
        std::function<void()> task;
        {
          const std::lock_guard lock(mutex);
          if (tasks.empty()) break;
          task = std::move(tasks.front());
          tasks.pop_front();
        }
        task();
      }
      {
        const std::lock_guard lock(mutex);
        if (closing) break;
      }
      std::optional<Time> next;
      for (std::size_t i = 0; i < children.size(); ++i) {
        auto& child = children[i];
        look_at(i);
        if (child.due && *child.due <= clock.now())
          if (const auto started = start(child); !started.ok()) tell(i, 0, {127, 0}, "could not be started again: " + started.error().message);
        if (child.due) next = next ? std::min(*next, *child.due) : *child.due;
      }
      polled.assign(1, {bell, POLLIN, 0});
      for (const auto& child : children)
        if (child.process) polled.push_back({child.process->descriptor(), POLLIN, 0});
      int milliseconds = -1;
      if (next) milliseconds = static_cast<int>(std::clamp<std::int64_t>((*next - clock.now()).count() / 1'000'000 + 1, 0, 60'000));
      poll(polled.data(), polled.size(), milliseconds);
      std::uint64_t count = 0;
      while (read(bell, &count, sizeof count) < 0 && errno == EINTR) {
      }
    }
    for (auto& child : children) child.process.reset();
  }

  /// Those of `numbers` that run.
  std::vector<Child*> running(const std::vector<std::size_t>& numbers) {
    std::vector<Child*> found;
    for (const auto number : numbers)
      if (number < children.size() && children[number].process) found.push_back(&children[number]);
    return found;
  }
};

Supervisor::Supervisor(std::unique_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<Supervisor>> Supervisor::create(std::function<void(const ChildEnd&)> on_end) {
  auto state = std::make_unique<State>();
  state->on_end = std::move(on_end);
  state->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (state->bell < 0) return Error{ErrorCode::io_failed, "an event descriptor could not be made: " + errno_text()};
  auto* own = state.get();
  state->thread = std::thread([own] { own->run(); });
  return std::unique_ptr<Supervisor>(new Supervisor(std::move(state)));
}

Supervisor::~Supervisor() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->closing = true;
  }
  state_->ring();
  state_->thread.join();
}

Result<std::size_t> Supervisor::add(SupervisedChild child) {
  return state_->on_thread([&]() -> Result<std::size_t> {
    auto& own = *state_;
    const RestartPolicy policy(child.limits);
    own.children.push_back({std::move(child), policy});
    if (auto started = own.start(own.children.back()); !started.ok()) {
      own.children.pop_back();
      return started.error();
    }
    return own.children.size() - 1;
  });
}

void Supervisor::let_end() {
  state_->on_thread([this] {
    state_->restarts = false;
    for (auto& child : state_->children) child.due.reset();
    return true;
  });
}

void Supervisor::stop(const std::vector<std::size_t>& children, Duration grace) {
  state_->on_thread([&] {
    std::vector<Process> processes;
    for (auto* child : state_->running(children)) {
      processes.push_back(std::move(*child->process));
      child->process.reset();
      child->due.reset();
    }
    stop_all(processes, grace);
    return true;
  });
}

void Supervisor::wait(const std::vector<std::size_t>& children, Duration limit) {
  state_->on_thread([&] {
    const auto until = state_->clock.now() + limit;
    for (auto* child : state_->running(children)) child->process->wait(std::max(Duration::zero(), until - state_->clock.now()));
    return true;
  });
}

}  // namespace orrery::launch

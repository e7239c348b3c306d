// gloo's all-reduce of f32 over its TCP transport, for tests/bench/collectives: prints "bytes microseconds" per size, the
// mean at rank 0. gloo has no shared-memory transport.
//   all_reduce_gloo FOLDER RANK RANKS MEGABYTES_PER_SIZE SIZE...

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include <gloo/allreduce.h>
#include <gloo/barrier.h>
#include <gloo/math.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>

int main(int count, char** words) {
  const int rank = std::atoi(words[2]), ranks = std::atoi(words[3]);
  const long budget = std::atol(words[4]) << 20;
  gloo::transport::tcp::attr where;
  where.hostname = "127.0.0.1";
  auto device = gloo::transport::tcp::CreateDevice(where);
  gloo::rendezvous::FileStore store(words[1]);
  auto context = std::make_shared<gloo::rendezvous::Context>(rank, ranks);
  context->connectFullMesh(store, device);
  for (int k = 5; k < count; ++k) {
    const long bytes = std::atol(words[k]);
    const auto values = static_cast<std::size_t>(bytes / 4);
    const long iterations = std::clamp(budget / bytes, 4L, 1000L), warm = std::max(2L, iterations / 10);
    std::vector<float> in(values), out(values);
    for (std::size_t i = 0; i < values; ++i) in[i] = static_cast<float>((i * 7 + static_cast<std::size_t>(rank)) % 1000);
    const auto once = [&] {
      gloo::AllreduceOptions options(context);
      options.setInput(in.data(), values);
      options.setOutput(out.data(), values);
      options.setReduceFunction([](void* a, const void* b, const void* c, std::size_t n) { gloo::sum<float>(a, b, c, n); });
      gloo::allreduce(options);
    };
    for (long i = 0; i < warm; ++i) once();
    gloo::BarrierOptions barrier(context);
    gloo::barrier(barrier);
    const auto begin = std::chrono::steady_clock::now();
    for (long i = 0; i < iterations; ++i) once();
    const std::chrono::duration<double, std::micro> all = std::chrono::steady_clock::now() - begin;
    if (rank == 0) std::printf("%ld %.2f\n", bytes, all.count() / static_cast<double>(iterations));
    std::fflush(stdout);
  }
  return 0;
}

// Wraps a transport: frames between processes of one host go through shared memory, all others through the inner one.
//
//                    ┌── lane in A's segment ──┐            small payloads lie in the ring;
//   A: send ─ copy ──┤ ring of records         ├──▶ B: thread or helper ──▶ handlers
//                    └── pool of payloads ─────┘            longer ones are read where they lie
//        └────────── inner transport (ZeroMQ) ──────────▶   introductions; and frames until both know each other
//
// Which way is decided per peer, and again whenever it connects: each side tells the other over the inner transport
// where its segment is (shm_segment.hpp); whoever can open and check it says so; then frames change over, in order. Who
// cannot (another host, container or user, a program without shared memory) keeps the inner transport, unnoticed.
// The inner connection stays: it says when a peer is gone.
//
// Copies: one by the sender, none by the receiver (but for payloads of at most 8 KiB). A payload that goes to several
// peers is copied once (`stage`). No system call on the way but the wake-up of a thread that sleeps.
//
// Waiting. A thread that waits for a frame sleeps in `help` and handles frames itself; the transport's own thread
// sleeps meanwhile. Frames that nobody waits for (acknowledgements) do not wake up a helper. Nobody spins.
//
// Trust. Peers are processes of the same user, but may be wild: they can only read our segment; what they say is copied,
// checked and only then used; a bad record ends the use of that lane, and the inner transport goes on. A peer that
// dies leaves nothing: what it held of the pool is taken back, and what we show of its pool stays readable.
//
// Bounds: `pool_bytes` for all peers together. A peer that lets go of nothing gets at most a half as bytes in place and
// copies the rest itself, so the other half goes on circulating.

#pragma once

#include <memory>

#include "protocol/transport.hpp"

namespace orrery::protocol {

struct ShmOptions {
  std::uint64_t pool_bytes = std::uint64_t{256} << 20;  // Address space; memory as far as it is used.
};

/// Fails with io_failed where the system gives no shared memory, or too little; `inner` is left as it was then.
Result<std::unique_ptr<Transport>> make_shm_transport(std::unique_ptr<Transport>& inner, const ShmOptions& options = {});

}  // namespace orrery::protocol

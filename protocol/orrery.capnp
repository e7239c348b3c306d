# The data plane's wire, as a book. Whoever writes another end reads this file first.
#
# A frame has two parts. Over ZeroMQ they are the two parts of one multipart message.
#
#   part 1   preamble, 16 bytes, little endian:
#              0  magic           UInt32   0x5952524f ("ORRY")
#              4  version         UInt16   protocol version, now 1; both ends must have the same
#              6  header bytes    UInt16   length of what follows the preamble: a multiple of 8, at most 1024
#              8  header checksum UInt64   XXH3-64 of what follows the preamble
#            then FrameHeader below in Cap'n Proto's flat form (unpacked, one segment)
#   part 2   payload: `payloadBytes` raw bytes; tensor elements are little endian
#
# The preamble never changes, so any two versions can tell each other apart.
#
# Words. A *process* takes part in the data plane under a small number (`sender`, `receiver`). An *endpoint*
# (`source`, `target`) is a card's number in the plan, or a client; several live in one process. A *session*
# is one life of a process. An *epoch* is one plan; the coordinator raises it on every change.
#
# A conversation between two processes A and B, per epoch:
#
#   A  hello ─────────────▶ B      "this is my session; I have received nothing; you may send 64 MiB"
#   A ◀───────────── hello  B      the same from the other side; now both may send
#   A  data 1, data 2 ────▶ B
#   A ◀── ack (acked = 2)   B      A gives the two payloads back to their owner
#   A  data 3 ──── lost
#   A  data 4 ────────────▶ B
#   A ◀── ack (2, mask 0b10)B      "4 is here, 3 is not"
#   A  data 3 ────────────▶ B
#
# Rules of evolution: append fields with the next ordinal; never renumber, retype or remove one. A field that
# an old sender does not know reads as 0, so 0 means "absent". An incompatible change raises `version`.

@0xd1f0a6c25be3479b;
using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("orrery::protocol::wire");

enum Kind {
  unspecified @0;  # Never sent; refused.
  hello @1;        # Sent when a connection comes up, at a new epoch, and until the other side answered.
  data @2;         # One chunk of one message. The only kind with a `sequence`, and the only one resent.
  ack @3;          # Only the fields of the sender's side as a receiver: `acked`, `ackedAfter`, `granted`.
  probe @4;        # "Are you there, and may I send?" Answered with an ack at once.
  refusal @5;      # Answer to a hello that does not fit; `refusal` says why, the payload says it in English.
}

# Numbers are those of base/tensor.hpp.
enum DType {
  unspecified @0;
  f32 @1;
  bf16 @2;
  f16 @3;
  f64 @4;
  i64 @5;
  i32 @6;
  i16 @7;
  i8 @8;
  u8 @9;
  u16 @10;
  u32 @11;
  u64 @12;
  boolean @13;
}

struct FrameHeader {
  kind @0 :Kind;                 # Since 1.

  # --- Who speaks, and of which plan. In every kind; since 1.
  clusterId @1 :UInt64;          # Random, made when the cluster comes up. Another one is refused.
  epoch @2 :UInt64;              # From 1. Lower than the receiver's: dropped and counted. Higher: dropped without
                                 # an ack, so that it comes again once the receiver was told of the epoch.
  planDigest @3 :UInt64;         # Of the plan of `epoch`. Another one in the same epoch is refused.
  sender @4 :UInt32;             # Process that sends this frame.
  receiver @5 :UInt32;           # Process that it is meant for.
  session @6 :UInt64;            # The sender's life; random, not 0.
  receiverSession @7 :UInt64;    # The receiver's life as far as the sender knows; 0 before the first hello.
                                 # Data for a former life is dropped.

  # --- Order. Kind data; since 1.
  sequence @8 :UInt64;           # From 1, without gaps, per (epoch, session, receiverSession).

  # --- The sender as a receiver of the opposite direction. In every kind but refusal; since 1.
  acked @9 :UInt64;              # All sequences up to here have arrived.
  ackedAfter @10 :UInt64;        # Bit i: sequence acked + 1 + i has arrived too (bit 0 is never set).
  granted @11 :UInt64;           # Bytes. The other side may send new data while what it has sent so far (each
                                 # frame counted once, as payloadBytes + 256) is below this. Never shrinks.

  # --- Which message. Kind data; since 1.
  request @12 :UInt64;           # Request number, from the coordinator's journal.
  step @13 :UInt32;              # Denoising step, from 0.
  stream @14 :UInt16;            # Which of a request's parallel flows (guidance branch, stage edge).
  part @15 :UInt16;              # Several messages of one op between the same two endpoints: 0, 1, ...
  op @16 :UInt32;                # Position in the program.
  source @17 :UInt32;            # Endpoint that made the bytes.
  target @18 :UInt32;            # Endpoint that they are for.

  # --- What the whole message is. Kind data; the same in each of its chunks; since 1.
  dtype @19 :DType;
  shape @20 :List(UInt64);       # Outermost first, at most 8 extents. Empty: a scalar.
  messageBytes @21 :UInt64;      # product(shape) * bytes per element.

  # --- This chunk. Kind data; since 1.
  chunkOffset @22 :UInt64;       # Bytes; where in the message part 2 begins.
  payloadBytes @23 :UInt64;      # Length of part 2; chunkOffset + payloadBytes <= messageBytes. 0 only when the
                                 # message is empty, or the kind has no payload.
  checksum @24 :UInt64;          # XXH3-64 of part 2. 0: none; only in frames that pass no wire (shm_transport.hpp).

  # --- Kind refusal; since 1.
  refusal @25 :UInt16;           # A number of base/errors.hpp, e.g. 46 version_mismatch.
}

// Who may talk to a cluster: key files, and the list of public keys that are let in.
//
//   FOLDER/allowed            one line per identity: NAME ROLE CURVE-KEY IDENTITY-KEY; public, the same on every host
//   FOLDER/NAME.secret        NAME's private keys, for this user only (mode 0600); needed only where NAME runs
//
// An identity is a node, the coordinator, or a client. It has a CURVE pair (data plane, ZeroMQ) and an Ed25519 pair
// (control plane, TLS). There is no authority that signs: whose public keys stand in `allowed` is let in, nobody else.
//
// `orrery keys` makes and edits such folders. Reading happens once, at start: a change counts from the next start on.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace orrery {

enum class KeyRole : std::uint8_t { node, coordinator, client };
std::string_view name_of(KeyRole role);

/// An Ed25519 public key.
using IdentityKey = std::array<std::byte, 32>;

struct PublicKeys {
  std::string name;  // Letters, digits, '.', '_' and '-'; unique in the list.
  KeyRole role = KeyRole::node;
  std::string curve;  // 40 characters of Z85.
  IdentityKey identity{};
};

/// One identity's own keys, and whom it lets in (itself included).
struct KeyRing {
  std::string name;
  std::string curve_secret;  // 40 characters of Z85.
  std::string identity_pem;  // PKCS #8, PEM.
  std::vector<PublicKeys> allowed;

  const PublicKeys& own() const;
  const PublicKeys* find(std::string_view name) const;
  const PublicKeys* find(const IdentityKey& identity) const;
};

/// How a process's connections are protected. Copies share the keys.
struct Security {
  std::shared_ptr<const KeyRing> keys;  // Null: none.
  bool always = false;                  // Also on addresses of this machine.
  bool insecure = false;                // Everybody on the network is trusted: no keys needed anywhere.

  /// Whether connections at `host` are encrypted and authenticated. Fails with invalid_config when they would have to
  /// be and there are no keys.
  Result<bool> protects(std::string_view host) const;
};

/// True for addresses that others cannot reach: 127.0.0.0/8, ::1 (also in brackets), localhost.
bool is_loopback(std::string_view host);

/// Fails with not_found, with invalid_config when others can read the secret, or write the list, or when a line cannot be
/// read, or NAME itself is not (any more) in the list. The error says which file and line.
Result<KeyRing> read_key_ring(const std::string& folder, const std::string& name);
Result<std::vector<PublicKeys>> read_allowed(const std::string& folder);
/// Replaces the list, whole.
Status write_allowed(const std::string& folder, const std::vector<PublicKeys>& allowed);

/// The text of a line, and back.
std::string text_of(const PublicKeys& keys);
Result<PublicKeys> parse_public_keys(std::string_view line);

/// A new Ed25519 pair.
struct IdentityPair {
  std::string pem;
  IdentityKey key{};
};
Result<IdentityPair> make_identity();

/// Writes FOLDER/NAME.secret, mode 0600. Fails with io_failed when it exists.
Status write_secret(const std::string& folder, const std::string& name, const std::string& curve_secret, const std::string& identity_pem);

}  // namespace orrery

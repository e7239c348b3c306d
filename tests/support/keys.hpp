// Keys of a few friends, in memory: what `orrery keys make` would write.

#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/keys.hpp"
#include "protocol/curve.hpp"

namespace orrery::testing {

/// Everybody named lets everybody named in.
class TestKeys {
public:
  explicit TestKeys(const std::vector<std::string>& names, KeyRole role = KeyRole::node) {
    for (const auto& name : names) {
      const auto curve = protocol::make_curve_pair();
      const auto identity = make_identity();
      ORRERY_CHECK(curve.ok() && identity.ok());
      allowed_.push_back({name, role, curve.value().public_key, identity.value().key});
      secrets_[name] = {curve.value().secret_key, identity.value().pem};
    }
  }

  /// `always`: also on loopback, where tests live.
  Security security(const std::string& name, bool always = true) const {
    const auto& [curve, pem] = secrets_.at(name);
    return {std::make_shared<KeyRing>(KeyRing{name, curve, pem, allowed_}), always, false};
  }
  const std::vector<PublicKeys>& allowed() const { return allowed_; }
  void set_role(const std::string& name, KeyRole role) {
    for (auto& one : allowed_)
      if (one.name == name) one.role = role;
  }

private:
  std::vector<PublicKeys> allowed_;
  std::map<std::string, std::pair<std::string, std::string>> secrets_;
};

}  // namespace orrery::testing

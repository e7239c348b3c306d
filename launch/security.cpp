#include "launch/security.hpp"

#include <filesystem>

#include <CLI/CLI.hpp>

namespace orrery::launch {

void add_security_options(CLI::App& verb, topology::SecuritySpec& security) {
  verb.add_option("--keys", security.keys, "Folder with key files (orrery keys); needed where others can reach the ports")
      ->type_name("FOLDER")
      ->envname("ORRERY_KEYS");
  verb.add_option_function<std::string>(
          "--tls",
          [&security](const std::string& text) {
            if (text != "auto" && text != "always") throw CLI::ValidationError("--tls", "'" + text + "' is not one of auto|always");
            security.tls = text == "always" ? topology::TlsUse::always : topology::TlsUse::automatic;
          },
          "always: encrypt what stays on this machine, too")
      ->type_name("auto|always");
  verb.add_flag("--insecure", security.insecure, "Work without keys where others can reach the ports");
}

std::vector<std::string> words_of(const topology::SecuritySpec& security) {
  std::vector<std::string> words;
  // Children may run in another folder.
  if (!security.keys.empty()) words = {"--keys", absolute_keys(security.keys)};
  if (security.tls == topology::TlsUse::always) words.insert(words.end(), {"--tls", "always"});
  if (security.insecure) words.emplace_back("--insecure");
  return words;
}

std::string absolute_keys(const std::string& folder) {
  if (folder.empty()) return folder;
  std::error_code failed;
  const auto path = std::filesystem::absolute(folder, failed);
  return failed ? folder : path.lexically_normal().string();
}

Result<Security> security_of(const topology::SecuritySpec& spec, const std::string& name) {
  Security security{nullptr, spec.tls == topology::TlsUse::always, spec.insecure};
  if (spec.keys.empty()) return security;
  ORRERY_TRY(ring, read_key_ring(spec.keys, name));
  security.keys = std::make_shared<const KeyRing>(std::move(ring));
  return security;
}

}  // namespace orrery::launch

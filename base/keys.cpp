#include "base/keys.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <span>

#include "base/file.hpp"

namespace orrery {
namespace {

constexpr std::size_t secret_bytes_max = 4096;
constexpr std::size_t allowed_bytes_max = std::size_t{4} << 20;
constexpr std::size_t curve_characters = 40;
constexpr std::size_t name_characters_max = 200;
constexpr std::string_view curve_word = "curve-secret ";

struct FreeKey {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
using Key = std::unique_ptr<EVP_PKEY, FreeKey>;
struct FreeBio {
  void operator()(BIO* bio) const { BIO_free(bio); }
};
using Bio = std::unique_ptr<BIO, FreeBio>;

const unsigned char* characters(const void* bytes) { return static_cast<const unsigned char*>(bytes); }

std::string base64_of(std::span<const std::byte> bytes) {
  std::string text((bytes.size() + 2) / 3 * 4 + 1, '\0');
  const int size = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()), characters(bytes.data()), static_cast<int>(bytes.size()));
  text.resize(static_cast<std::size_t>(size));
  return text;
}

/// Exactly `size` bytes, or nothing.
std::optional<std::vector<std::byte>> from_base64(std::string_view text, std::size_t size) {
  if (text.size() != (size + 2) / 3 * 4) return std::nullopt;
  std::vector<std::byte> bytes(text.size() / 4 * 3);
  if (EVP_DecodeBlock(reinterpret_cast<unsigned char*>(bytes.data()), characters(text.data()), static_cast<int>(text.size())) < 0) return std::nullopt;
  bytes.resize(size);
  // Padding and stray bits are not told by the decoder: only one text stands for the bytes.
  if (base64_of(bytes) != text) return std::nullopt;
  return bytes;
}

bool is_z85_key(std::string_view text) {
  return text.size() == curve_characters && text.find_first_not_of("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                                                   ".-:+=^!/*?&<>()[]{}@%$#") == std::string_view::npos;
}

bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= name_characters_max && text[0] != '.' && text[0] != '-' &&
         text.find_first_not_of("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._-") == std::string_view::npos;
}

Key read_private(const std::string& pem) {
  const Bio bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  // The callback answers for a passphrase: there is none, and nobody is asked.
  return Key(PEM_read_bio_PrivateKey(bio.get(), nullptr, [](char*, int, int, void*) { return -1; }, nullptr));
}

std::optional<IdentityKey> public_of(const EVP_PKEY* key) {
  IdentityKey raw{};
  std::size_t size = raw.size();
  if (key == nullptr || EVP_PKEY_get_id(key) != EVP_PKEY_ED25519 ||
      EVP_PKEY_get_raw_public_key(key, reinterpret_cast<unsigned char*>(raw.data()), &size) != 1 || size != raw.size())
    return std::nullopt;
  return raw;
}

std::vector<std::string_view> words_of(std::string_view line) {
  std::vector<std::string_view> words;
  while (true) {
    const auto from = line.find_first_not_of(" \t\r");
    if (from == std::string_view::npos) return words;
    line.remove_prefix(from);
    const auto size = std::min(line.find_first_of(" \t\r"), line.size());
    words.push_back(line.substr(0, size));
    line.remove_prefix(size);
  }
}

/// A file that is what it should be: ours or root's, and nobody of `forbidden` (mode bits) may touch it.
Result<std::string> read_guarded(const std::string& path, mode_t forbidden, std::size_t bytes_max, const std::string& danger) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0)
    return Error{errno == ENOENT ? ErrorCode::not_found : ErrorCode::io_failed, "cannot read " + path + ": " + errno_text(),
                 "make keys with `orrery keys make`"};
  struct Closing {
    int file;
    ~Closing() { ::close(file); }
  } closing{file};
  struct stat facts {};
  if (::fstat(file, &facts) != 0 || !S_ISREG(facts.st_mode)) return Error{ErrorCode::invalid_config, path + " is not a file"};
  if ((facts.st_uid != ::geteuid() && facts.st_uid != 0) || (facts.st_mode & forbidden) != 0)
    return Error{ErrorCode::invalid_config, danger + " " + path, forbidden == 077 ? "chmod 600 " + path : "chmod go-w " + path};
  std::string text;
  for (;;) {
    char buffer[4096];
    const auto count = ::read(file, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Error{ErrorCode::io_failed, "cannot read " + path + ": " + errno_text()};
    if (count == 0) return text;
    text.append(buffer, static_cast<std::size_t>(count));
    if (text.size() > bytes_max) return Error{ErrorCode::invalid_config, path + " is too long to be what it should be"};
  }
}

}  // namespace

std::string_view name_of(KeyRole role) {
  switch (role) {
    case KeyRole::node: return "node";
    case KeyRole::coordinator: return "coordinator";
    case KeyRole::client: return "client";
  }
  return "unknown";
}

const PublicKeys& KeyRing::own() const {
  const auto* found = find(name);
  ORRERY_CHECK(found != nullptr);  // read_key_ring made sure.
  return *found;
}

const PublicKeys* KeyRing::find(std::string_view wanted) const {
  const auto found = std::find_if(allowed.begin(), allowed.end(), [&](const PublicKeys& one) { return one.name == wanted; });
  return found == allowed.end() ? nullptr : &*found;
}

const PublicKeys* KeyRing::find(const IdentityKey& identity) const {
  const auto found = std::find_if(allowed.begin(), allowed.end(), [&](const PublicKeys& one) { return one.identity == identity; });
  return found == allowed.end() ? nullptr : &*found;
}

Result<bool> Security::protects(std::string_view host) const {
  const bool local = is_loopback(host);
  if (keys) return always || !local;
  if (insecure || (local && !always)) return false;
  return Error{ErrorCode::invalid_config,
               (local ? "security.tls is `always`" : "others can reach " + std::string(host)) + ", but there are no keys to know friends by",
               "make keys with `orrery keys make` and name the folder in the cluster file (`security: {keys: FOLDER}`), or, if everybody on "
               "that network is trusted, write `security: {insecure: true}`"};
}

bool is_loopback(std::string_view host) {
  std::string text(host);
  if (text.size() > 2 && text.front() == '[' && text.back() == ']') text = text.substr(1, text.size() - 2);
  if (text == "localhost") return true;
  in_addr four{};
  if (::inet_pton(AF_INET, text.c_str(), &four) == 1) return (ntohl(four.s_addr) >> 24) == 127;
  in6_addr six{};
  if (::inet_pton(AF_INET6, text.c_str(), &six) != 1) return false;
  if (IN6_IS_ADDR_V4MAPPED(&six)) return six.s6_addr[12] == 127;
  return IN6_IS_ADDR_LOOPBACK(&six);
}

std::string text_of(const PublicKeys& keys) {
  return keys.name + " " + std::string(name_of(keys.role)) + " " + keys.curve + " " + base64_of(keys.identity);
}

Result<PublicKeys> parse_public_keys(std::string_view line) {
  const auto words = words_of(line);
  if (words.size() != 4) return Error{ErrorCode::invalid_config, "should be NAME ROLE CURVE-KEY IDENTITY-KEY"};
  PublicKeys keys;
  if (!is_name(words[0])) return Error{ErrorCode::invalid_config, "the name should have letters, digits, '.', '_' and '-' only"};
  keys.name = words[0];
  if (words[1] == "node")
    keys.role = KeyRole::node;
  else if (words[1] == "coordinator")
    keys.role = KeyRole::coordinator;
  else if (words[1] == "client")
    keys.role = KeyRole::client;
  else
    return Error{ErrorCode::invalid_config, "the role should be node, coordinator or client"};
  if (!is_z85_key(words[2])) return Error{ErrorCode::invalid_config, "the CURVE key should have 40 characters of Z85"};
  keys.curve = words[2];
  const auto identity = from_base64(words[3], keys.identity.size());
  if (!identity) return Error{ErrorCode::invalid_config, "the identity key should be 32 bytes of base64"};
  std::copy(identity->begin(), identity->end(), keys.identity.begin());
  return keys;
}

Result<std::vector<PublicKeys>> read_allowed(const std::string& folder) {
  const auto path = folder + "/allowed";
  ORRERY_TRY(text, read_guarded(path, 022, allowed_bytes_max, "others can write"));
  std::vector<PublicKeys> allowed;
  std::set<std::string> taken;
  std::size_t line_number = 0;
  for (std::string_view rest = text; !rest.empty();) {
    ++line_number;
    const auto end = std::min(rest.find('\n'), rest.size());
    const auto line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (words_of(line).empty() || line[0] == '#') continue;
    const auto place = path + ":" + std::to_string(line_number) + ": ";
    auto keys = parse_public_keys(line);
    if (!keys.ok()) return Error{ErrorCode::invalid_config, place + keys.error().message, "`orrery keys make` writes such a file"};
    auto& one = keys.value();
    // Two names of one key, or two keys of one name, would make it unclear who somebody is.
    if (!taken.insert("name " + one.name).second || !taken.insert("curve " + one.curve).second || !taken.insert("identity " + base64_of(one.identity)).second)
      return Error{ErrorCode::invalid_config, place + "the name, or one of the keys, stands there twice"};
    allowed.push_back(std::move(one));
  }
  return allowed;
}

Status write_allowed(const std::string& folder, const std::vector<PublicKeys>& allowed) {
  std::string text = "# Whom this cluster lets in: name, role, CURVE public key, Ed25519 public key. See `orrery keys --help`.\n";
  for (const auto& one : allowed) text += text_of(one) + "\n";
  ORRERY_TRY(file, AtomicFile::create(folder + "/allowed"));
  ORRERY_TRY_DONE(file.write(text));
  // Whatever the umask says: a list that others may write is refused when it is read.
  if (::chmod(file.partial_path().c_str(), 0644) != 0) return Error{ErrorCode::io_failed, "cannot write " + folder + "/allowed: " + errno_text()};
  return file.commit();
}

Result<KeyRing> read_key_ring(const std::string& folder, const std::string& name) {
  if (!is_name(name)) return Error{ErrorCode::invalid_config, "'" + name.substr(0, name_characters_max) + "' cannot be a name of keys"};
  const auto path = folder + "/" + name + ".secret";
  ORRERY_TRY(text, read_guarded(path, 077, secret_bytes_max, "others can read"));
  KeyRing ring;
  ring.name = name;
  const auto line = text.find('\n' + std::string(curve_word));
  const auto pem = text.find("-----BEGIN PRIVATE KEY-----");
  if (line != std::string::npos) ring.curve_secret = text.substr(line + 1 + curve_word.size(), curve_characters);
  if (pem != std::string::npos) ring.identity_pem = text.substr(pem);
  OPENSSL_cleanse(text.data(), text.size());
  const auto identity = public_of(read_private(ring.identity_pem).get());
  if (!is_z85_key(ring.curve_secret) || !identity)
    return Error{ErrorCode::invalid_config, path + " does not hold the two keys that it should", "`orrery keys make` writes such a file"};
  ORRERY_TRY(allowed, read_allowed(folder));
  ring.allowed = std::move(allowed);
  const auto* own = ring.find(std::string_view(name));
  if (own == nullptr || own->identity != *identity)
    return Error{ErrorCode::invalid_config,
                 own == nullptr ? name + " is not in " + folder + "/allowed" : folder + "/allowed has another key of " + name + " than " + path,
                 "was it revoked, or are the files of two `orrery keys make`?"};
  return ring;
}

Result<IdentityPair> make_identity() {
  const Key key(EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519"));
  const Bio bio(BIO_new(BIO_s_secmem()));
  const auto raw = public_of(key.get());
  if (!raw || PEM_write_bio_PKCS8PrivateKey(bio.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr) != 1)
    return Error{ErrorCode::io_failed, "OpenSSL could not make an Ed25519 key"};
  char* text = nullptr;
  const auto size = BIO_get_mem_data(bio.get(), &text);
  return IdentityPair{std::string(text, static_cast<std::size_t>(size)), *raw};
}

Status write_secret(const std::string& folder, const std::string& name, const std::string& curve_secret, const std::string& identity_pem) {
  if (!is_name(name)) return Error{ErrorCode::invalid_config, "'" + name.substr(0, name_characters_max) + "' cannot be a name of keys"};
  const auto path = folder + "/" + name + ".secret";
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (file < 0) {
    const bool exists = errno == EEXIST;
    return Error{ErrorCode::io_failed, "cannot make " + path + ": " + errno_text(),
                 exists ? "keys are never overwritten: remove the file first if it is not needed any more" : ""};
  }
  const auto text = "# The private keys of " + name + ". Whoever can read this file can pose as " + name + ".\n" + std::string(curve_word) + curve_secret + "\n" + identity_pem;
  const bool written = ::write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size()) && ::fsync(file) == 0;
  const auto why = errno_text();
  if (::close(file) == 0 && written) return Done{};
  ::unlink(path.c_str());
  return Error{ErrorCode::io_failed, "cannot write " + path + ": " + why};
}

}  // namespace orrery

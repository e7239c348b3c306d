#include "topology/cluster_spec.hpp"

#include <algorithm>
#include <map>
#include <set>

#include "topology/hostlist.hpp"

namespace orrery::topology {
namespace {

// The file as written; `read_cluster` makes a ClusterSpec of it.

struct CardsEntry {
  std::string type = "cpu";
  std::uint32_t count = 1;
  std::optional<std::uint64_t> memory;
  std::optional<std::uint32_t> threads;
  double compute_share = 1;
};

struct NodesEntry {
  std::string hosts;
  std::string address;
  std::vector<CardsEntry> cards{CardsEntry{}};
  std::map<std::string, std::string> labels;
};

struct LinkType {
  double bandwidth = 0;
  double latency = 0;
};

enum class Reach : std::uint8_t { node, nodes };

struct LinkEntry {
  std::optional<Reach> within, between;
  std::string type;
  std::optional<double> bandwidth, latency;
  LinkShape shape = LinkShape::ports;
};

struct ClusterFile {
  std::map<std::string, CardProfile> card_types;
  std::map<std::string, LinkType> link_types;
  std::vector<NodesEntry> nodes;
  std::vector<LinkEntry> links;
  LaunchSpec launch;
  ControlSpec control;
  DataSpec data;
  SecuritySpec security;
};

std::string positive(const double& value) { return value > 0 ? "" : "should be more than 0"; }

const Schema<ClusterFile>& cluster_schema() {
  static const Schema<CardsEntry> cards =
      Schema<CardsEntry>("cards", "Equal cards of a node.")
          .field("type", &CardsEntry::type, text(),
                 "A card type of this file, or a shipped profile (`cpu`, `atom`, `atom-max`, `rebel100`, `h100`).")
          .field("count", &CardsEntry::count, whole<std::uint32_t>(1, 256), "Cards of this type on each host.")
          .optional("memory", &CardsEntry::memory, bytes(), "Card memory instead of the type's.",
                    {.standard = "that of the type",
                     .check = [](const std::uint64_t& n) { return n > 0 ? "" : "should be more than 0 B"; }})
          .optional("threads", &CardsEntry::threads, whole<std::uint32_t>(1, 256),
                    "Threads of one card instead of the type's (backend `cpu`).", {.standard = "that of the type"})
          .field("compute_share", &CardsEntry::compute_share, number(0.001, 1000),
                 "Factor on the type's compute rate: how fast the card is beside its fellows.", {.example = "3"});
  static const Schema<NodesEntry> nodes =
      Schema<NodesEntry>("nodes", "Equal hosts. One `orrery node` process runs per host name.")
          .field("hosts", &NodesEntry::hosts, text(), "Host names, as a host list.",
                 {.required = true, .example = "npu[01-04]"})
          .field("address", &NodesEntry::address, text(),
                 "How to reach a host; `{host}` and `{index}` (from 0, in this entry) are replaced.",
                 {.example = "10.0.0.{index}", .standard = "the host name"})
          .field("cards", &NodesEntry::cards, one_or_list_of(object(cards), 64), "The host's cards, in order.",
                 {.standard = "one card of type cpu"})
          .field("labels", &NodesEntry::labels, map_of(text(), "label"), "Free labels.", {.standard = "none"});
  static const Schema<LinkType> link_type =
      Schema<LinkType>("link type", "A kind of connection.")
          .field("bandwidth", &LinkType::bandwidth, bytes_per_second(), "One direction.",
                 {.required = true, .check = positive})
          .field("latency", &LinkType::latency, seconds(), "Of one message, end to end.", {.required = true});
  static const Schema<LinkEntry> links =
      Schema<LinkEntry>("links",
                        "What connects the cards of a node (`within: node`), or the nodes (`between: nodes`).")
          .optional("within", &LinkEntry::within, choice<Reach>({{"node", Reach::node}}),
                    "The link between the cards of each node.")
          .optional("between", &LinkEntry::between, choice<Reach>({{"nodes", Reach::nodes}}),
                    "The link between nodes; the cards of a node share it.")
          .field("type", &LinkEntry::type, text(), "A link type of this file.",
                 {.standard = "none: write bandwidth and latency here"})
          .optional("bandwidth", &LinkEntry::bandwidth, bytes_per_second(), "Instead of the type's.",
                    {.standard = "within: 8 GB/s, between: 1 GB/s", .check = positive})
          .optional("latency", &LinkEntry::latency, seconds(), "Instead of the type's.",
                    {.standard = "within: 20 us, between: 80 us"})
          .field("shape", &LinkEntry::shape,
                 choice<LinkShape>({{"mesh", LinkShape::mesh},
                                    {"ports", LinkShape::ports},
                                    {"ring", LinkShape::ring},
                                    {"shared", LinkShape::shared}}),
                 "`mesh`: a wire between every two; `ports`: one port each into a switch; `ring`: wires between "
                 "neighbours; `shared`: one medium.");
  static const Schema<LaunchSpec> launch =
      Schema<LaunchSpec>("launch", "How node processes are started.")
          .field("via", &LaunchSpec::via, choice<LaunchVia>({{"local", LaunchVia::local}, {"ssh", LaunchVia::ssh}}),
                 "`local`: all on this machine; `ssh`: one on each host.")
          .field("user", &LaunchSpec::user, text(), "Login name for ssh.", {.standard = "ssh's own"})
          .field("program", &LaunchSpec::program, text(), "The program on the hosts (ssh).")
          .field("ready_timeout", &LaunchSpec::ready_timeout, seconds(), "Until every node has reported.",
                 {.check = positive})
          .field("stop_grace", &LaunchSpec::stop_grace, seconds(), "Between the polite and the hard stop.");
  static const Schema<ControlSpec> control =
      Schema<ControlSpec>("control", "The coordinator's control plane.")
          .field("listen", &ControlSpec::listen, text(), "HOST:PORT; port 0 means any free one.")
          .field("token_file", &ControlSpec::token_file, text(), "File with the shared secret.",
                 {.standard = "none"});
  static const Schema<DataSpec> data =
      Schema<DataSpec>("data", "The data plane between cards.")
          .field("transport", &DataSpec::transport,
                 choice<DataTransport>({{"auto", DataTransport::automatic},
                                        {"inproc", DataTransport::inproc},
                                        {"shm", DataTransport::shm},
                                        {"ipc", DataTransport::ipc},
                                        {"tcp", DataTransport::tcp}}),
                 "`auto`: memory inside a process, shared memory between processes of one host, tcp between hosts. `shm`: the "
                 "same. `ipc`, `tcp`: through sockets only.");
  static const Schema<SecuritySpec> security =
      Schema<SecuritySpec>("security", "Who is let in, and what is encrypted.")
          .field("keys", &SecuritySpec::keys, text(),
                 "Folder with the key files of `orrery keys make`, the same path on every host. With it, connections that "
                 "leave a machine are encrypted and let in only allowed keys.",
                 {.example = "/etc/orrery/keys", .standard = "none"})
          .field("insecure", &SecuritySpec::insecure, boolean(),
                 "Work without keys where others can reach the ports: for networks whose every host is trusted.")
          .field("tls", &SecuritySpec::tls, choice<TlsUse>({{"auto", TlsUse::automatic}, {"always", TlsUse::always}}),
                 "`auto`: what stays on one machine is not encrypted; `always`: everything is.");
  static const Schema<ClusterFile> schema =
      Schema<ClusterFile>("Cluster", "Hosts, their cards and what connects them. The keys of `spec`:")
          .field("card_types", &ClusterFile::card_types, map_of(object(card_profile_schema()), "name"),
                 "Card types of this file.", {.standard = "the shipped ones"})
          .field("link_types", &ClusterFile::link_types, map_of(object(link_type), "name"),
                 "Link types of this file.", {.standard = "none"})
          .field("nodes", &ClusterFile::nodes, list_of(object(nodes), 4096), "The hosts.",
                 {.required = true,
                  .check =
                      [](const std::vector<NodesEntry>& all) {
                        return all.empty() ? "should name at least one host" : "";
                      }})
          .field("links", &ClusterFile::links, list_of(object(links), 2), "Links within and between nodes.",
                 {.standard = "within: 8 GB/s and 20 us, between: 1 GB/s and 80 us"})
          .field("launch", &ClusterFile::launch, object(launch), "How nodes are started.",
                 {.standard = "on this machine"})
          .field("control", &ClusterFile::control, object(control), "The coordinator.",
                 {.standard = "127.0.0.1, any port"})
          .field("data", &ClusterFile::data, object(data), "Between cards.", {.standard = "auto"})
          .field("security", &ClusterFile::security, object(security), "Keys and encryption.",
                 {.standard = "no keys: only addresses of this machine are served"});
  return schema;
}

std::string replaced(std::string text, const std::string& word, const std::string& by) {
  for (auto at = text.find(word); at != std::string::npos; at = text.find(word, at + by.size()))
    text.replace(at, word.size(), by);
  return text;
}

/// Host lists, references and relations of a file, with complaints at their places.
class Expander {
public:
  Expander(const YamlNode& spec, const ClusterFile& file, const CardTypes& shipped, YamlReader& reader,
           ClusterSpec& into)
      : spec_(spec), file_(file), shipped_(shipped), reader_(reader), into_(into) {}

  void run() {
    for (std::size_t i = 0; i < file_.nodes.size(); ++i)
      add_nodes(file_.nodes[i], "nodes[" + std::to_string(i) + "]");
    for (std::size_t i = 0; i < file_.links.size(); ++i)
      add_link(file_.links[i], "links[" + std::to_string(i) + "]");
    if (into_.data.transport == DataTransport::inproc && into_.nodes.size() > 1)
      complain("data.transport", "E112",
               "should not be inproc for a cluster of several nodes: they are separate processes", "write auto");
    if (into_.launch.via == LaunchVia::ssh && into_.data.transport == DataTransport::ipc && into_.nodes.size() > 1)
      complain("data.transport", "E112", "should not be ipc between hosts", "write auto or tcp");
    const auto& security = into_.security;
    if (security.insecure && !security.keys.empty())
      complain("security.insecure", "E112", "should not be true where keys are given", "take one of the two out");
    if (security.tls == TlsUse::always && security.keys.empty())
      complain("security.tls", "E112", "should not be always without keys", "make keys with `orrery keys make`, and name the folder as keys");
  }

private:
  void complain(const std::string& path, const std::string& code, const std::string& what,
                const std::string& hint = "") {
    reader_.complain(spec_.nearest(path), code, "spec." + path, what, hint);
  }

  const CardProfile* type_named(const std::string& name) {
    if (const auto found = file_.card_types.find(name); found != file_.card_types.end()) return &found->second;
    if (const auto found = shipped_.find(name); found != shipped_.end()) return &found->second;
    return nullptr;
  }

  void add_nodes(const NodesEntry& entry, const std::string& path) {
    std::vector<ClusterCard> cards;
    for (std::size_t i = 0; i < entry.cards.size(); ++i) {
      const auto& one = entry.cards[i];
      const auto* type = type_named(one.type);
      const auto here = path + ".cards[" + std::to_string(i) + "]";
      if (type == nullptr) {
        std::vector<std::string> known;
        for (const auto& [name, profile] : file_.card_types) known.push_back(name);
        for (const auto& [name, profile] : shipped_) known.push_back(name);
        complain(here + ".type", "E201", "names the unknown card type '" + shown(one.type) + "'",
                 suggestion(one.type, known));
        continue;
      }
      auto& kept = into_.card_types[one.type];
      kept = *type;
      kept.name = one.type;
      if (one.threads && type->backend != Backend::cpu)
        complain(here + ".threads", "E112",
                 "is for cards of backend cpu, and '" + shown(one.type) + "' has backend " +
                     std::string(name_of(type->backend)));
      cards.insert(cards.end(), one.count,
                   ClusterCard{one.type, one.memory.value_or(type->memory), one.threads.value_or(type->threads),
                               one.compute_share});
    }
    if (entry.hosts.empty()) return;
    const auto hosts = expand_hosts(entry.hosts);
    if (!hosts.ok()) {
      complain(path + ".hosts", "E114", hosts.error().message, hosts.error().hint);
      return;
    }
    for (std::size_t i = 0; i < hosts.value().size(); ++i) {
      const auto& host = hosts.value()[i];
      if (into_.nodes.size() >= host_count_max || card_count_ + cards.size() > card_count_max) {
        complain(path + ".hosts", "E114", "makes the cluster larger than 4096 hosts or 65536 cards");
        return;
      }
      if (!names_.insert(host).second) {
        complain(path + ".hosts", "E204", "names host '" + shown(host) + "', which another entry names too");
        continue;
      }
      card_count_ += cards.size();
      const auto address = entry.address.empty()
                               ? host
                               : replaced(replaced(entry.address, "{host}", host), "{index}", std::to_string(i));
      into_.nodes.push_back({host, address, cards, entry.labels});
    }
  }

  void add_link(const LinkEntry& entry, const std::string& path) {
    if (entry.within.has_value() == entry.between.has_value()) {
      complain(path, "E104", "needs either 'within: node' or 'between: nodes'");
      return;
    }
    bool& seen = entry.within ? within_seen_ : between_seen_;
    if (seen)
      complain(path, "E204",
               std::string("is the second link ") + (entry.within ? "within a node" : "between nodes"));
    seen = true;
    auto& link = entry.within ? into_.within_node : into_.between_nodes;
    if (!entry.type.empty()) {
      const auto found = file_.link_types.find(entry.type);
      if (found == file_.link_types.end()) {
        std::vector<std::string> known;
        for (const auto& [name, type] : file_.link_types) known.push_back(name);
        complain(path + ".type", "E201", "names the unknown link type '" + shown(entry.type) + "'",
                 known.empty() ? "declare it under spec.link_types" : suggestion(entry.type, known));
        return;
      }
      link.name = entry.type;
      link.bandwidth = found->second.bandwidth;
      link.latency = found->second.latency;
    }
    link.bandwidth = entry.bandwidth.value_or(link.bandwidth);
    link.latency = entry.latency.value_or(link.latency);
    link.shape = entry.shape;
  }

  const YamlNode& spec_;
  const ClusterFile& file_;
  const CardTypes& shipped_;
  YamlReader& reader_;
  ClusterSpec& into_;
  std::set<std::string> names_;
  std::size_t card_count_ = 0;
  bool within_seen_ = false, between_seen_ = false;
};

}  // namespace

std::string_view name_of(LinkShape shape) {
  switch (shape) {
    case LinkShape::mesh: return "mesh";
    case LinkShape::ports: return "ports";
    case LinkShape::ring: return "ring";
    case LinkShape::shared: return "shared";
  }
  return "ports";
}
std::string_view name_of(LaunchVia via) { return via == LaunchVia::local ? "local" : "ssh"; }
std::string_view name_of(DataTransport transport) {
  switch (transport) {
    case DataTransport::automatic: return "auto";
    case DataTransport::inproc: return "inproc";
    case DataTransport::shm: return "shm";
    case DataTransport::ipc: return "ipc";
    case DataTransport::tcp: return "tcp";
  }
  return "auto";
}

std::size_t ClusterSpec::card_count() const {
  std::size_t count = 0;
  for (const auto& node : nodes) count += node.cards.size();
  return count;
}

ClusterSpec read_cluster(const YamlNode& spec, const std::string& name, const CardTypes& shipped,
                         YamlReader& reader) {
  ClusterFile file;
  cluster_schema().read(spec, "spec", file, reader);
  ClusterSpec cluster;
  cluster.name = name;
  cluster.launch = file.launch;
  cluster.control = file.control;
  cluster.data = file.data;
  cluster.security = file.security;
  Expander(spec, file, shipped, reader, cluster).run();
  return cluster;
}

OrderedJson cluster_json_schema() { return cluster_schema().json_schema(); }
std::vector<SchemaPage> cluster_pages() { return cluster_schema().pages(); }
std::vector<std::string> cluster_keys() { return cluster_schema().keys(); }

}  // namespace orrery::topology

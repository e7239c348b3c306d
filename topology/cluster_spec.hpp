// A cluster as its YAML file describes it, with host lists expanded and card types looked up.
//
// A file may be as small as `spec: {nodes: [{hosts: "h[1-2]", cards: {type: cpu, count: 2}}]}`: started on
// this machine, one process per host name, default links.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/yaml_schema.hpp"
#include "topology/card_profile.hpp"

namespace orrery::topology {

/// How the members of a link share it.
enum class LinkShape : std::uint8_t {
  mesh,    // A wire of its own between every two.
  ports,   // One port per member into a switch that never blocks.
  ring,    // Wires between neighbours; what goes further passes through them.
  shared,  // One medium for all traffic.
};
std::string_view name_of(LinkShape shape);

/// A connection between the cards of a node (members: cards), or between nodes (members: nodes; the cards of
/// a node share its port).
struct Link {
  std::string name;
  double bandwidth = 0;  // Bytes per second, one direction.
  double latency = 0;    // Seconds per message.
  LinkShape shape = LinkShape::ports;
};

struct ClusterCard {
  std::string type;           // Key of ClusterSpec::card_types.
  std::uint64_t memory = 0;   // Bytes, the hard budget.
  std::uint32_t threads = 1;  // Backend cpu.
  double compute_share = 1;   // Factor on the type's compute rate.
};

struct ClusterNode {
  std::string name;     // Host name; unique.
  std::string address;  // Where the launcher and other nodes reach it; the name unless given.
  std::vector<ClusterCard> cards;
  std::map<std::string, std::string> labels;
};

enum class LaunchVia : std::uint8_t { local, ssh };
std::string_view name_of(LaunchVia via);

struct LaunchSpec {
  LaunchVia via = LaunchVia::local;
  std::string user;                // ssh: login name; empty: ssh's own choice.
  std::string program = "orrery";  // ssh: the program on the hosts.
  double ready_timeout = 60;       // Seconds.
  double stop_grace = 30;
};

struct ControlSpec {
  std::string listen = "127.0.0.1:0";  // HOST:PORT; port 0: any free one.
  std::string token_file;
};

enum class DataTransport : std::uint8_t { automatic, inproc, shm, ipc, tcp };
std::string_view name_of(DataTransport transport);

struct DataSpec {
  DataTransport transport = DataTransport::automatic;
};

enum class TlsUse : std::uint8_t { automatic, always };

struct SecuritySpec {
  std::string keys;       // Folder of `orrery keys make`; empty: none.
  bool insecure = false;  // Nothing is encrypted, and everybody who reaches a port is believed.
  TlsUse tls = TlsUse::automatic;
};

struct ClusterSpec {
  std::string name;
  std::map<std::string, CardProfile> card_types;  // Those in use.
  std::vector<ClusterNode> nodes;
  Link within_node{"within-node", 8e9, 20e-6, LinkShape::ports};
  Link between_nodes{"between-nodes", 1e9, 80e-6, LinkShape::ports};
  LaunchSpec launch;
  ControlSpec control;
  DataSpec data;
  SecuritySpec security;

  std::size_t card_count() const;
  const CardProfile& type_of(const ClusterCard& card) const { return card_types.at(card.type); }
};

/// Most cards that a cluster may have.
inline constexpr std::size_t card_count_max = 65'536;

/// Names of card types outside the file; null when unknown.
using CardTypes = std::map<std::string, CardProfile>;

/// Reads the `spec` of a Cluster document; complains about everything that is wrong in it.
ClusterSpec read_cluster(const YamlNode& spec, const std::string& name, const CardTypes& shipped,
                         YamlReader& reader);

OrderedJson cluster_json_schema();
std::vector<SchemaPage> cluster_pages();
std::vector<std::string> cluster_keys();

}  // namespace orrery::topology

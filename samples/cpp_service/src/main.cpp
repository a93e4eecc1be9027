// A service over one bundle: token ids with a tenant for each row, answered in mixed batches.
//
// It has no authentication: it listens to this machine only.
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "batcher.hpp"
#include "service.hpp"

namespace {

constexpr const char* usage =
    "usage: adexport_service BUNDLE --adapters FOLDER [--port 8322] [--threads 1] [--requests 64] [--wait 3]\n"
    "  --adapters  the folder of NAME.safetensors\n"
    "  --threads   of one operator; 0: ONNX Runtime chooses\n"
    "  --requests  under way at most\n"
    "  --wait      milliseconds that a batch waits for others\n";

struct Given {
  std::string bundle;
  std::filesystem::path adapters;
  int port = 8322;
  int threads = 1;
  Batcher::Limits limits;
};

long number(const std::string& option, const std::string& value, long most) {
  std::size_t end = 0;
  const long parsed = std::stol(value, &end);
  if (end != value.size() || parsed < 0 || parsed > most) {
    throw std::invalid_argument(option + " " + value);
  }
  return parsed;
}

Given read_arguments(const std::vector<std::string>& arguments) {
  Given given;
  for (std::size_t at = 0; at < arguments.size(); ++at) {
    const std::string& option = arguments[at];
    if (option.rfind("--", 0) != 0) {
      given.bundle = option;
      continue;
    }
    const std::string& value = arguments.at(++at);
    if (option == "--adapters") {
      given.adapters = value;
    } else if (option == "--port") {
      given.port = static_cast<int>(number(option, value, 65535));
    } else if (option == "--threads") {
      given.threads = static_cast<int>(number(option, value, 1024));
    } else if (option == "--requests") {
      given.limits.requests = static_cast<std::size_t>(number(option, value, 1024));
    } else if (option == "--wait") {
      given.limits.wait = std::chrono::milliseconds(number(option, value, 60000));
    } else {
      throw std::invalid_argument(option);
    }
  }
  if (given.bundle.empty() || given.adapters.empty()) {
    throw std::invalid_argument("a bundle and --adapters are needed");
  }
  return given;
}

// The library's own choice would let two services listen to one port.
void socket_options(int socket) {
  const int yes = 1;
  setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
}

void serve(const Given& given, const sigset_t& ends) {
  adexport::Options options;
  options.threads = given.threads;
  options.spin = false;
  adexport::Engine engine = adexport::Engine::open(given.bundle, options);
  Batcher batcher(engine, given.limits);
  httplib::Server server;
  // a thread for every request under way, and some to tell others that there are too many
  server.new_task_queue = [&] { return new httplib::ThreadPool(given.limits.requests + 8); };
  server.set_socket_options(socket_options);
  add_service(server, engine, batcher, given.adapters);
  if (!server.bind_to_port("127.0.0.1", given.port)) {
    throw std::runtime_error("port " + std::to_string(given.port) + " is not to be had");
  }
  std::thread listening([&] {
    server.listen_after_bind();
    kill(getpid(), SIGTERM);  // if it ended by itself
  });
  while (!server.is_running()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::printf("http://127.0.0.1:%d (%s)\n", given.port, engine.provider().c_str());
  std::fflush(stdout);
  int got = 0;
  sigwait(&ends, &got);
  server.stop();
  listening.join();  // what is under way is answered
}

}  // namespace

int main(int count, char** values) {
  // before any thread starts: all of them leave these to sigwait
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);
  Given given;
  try {
    given = read_arguments(std::vector<std::string>(values + 1, values + count));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n%s", error.what(), usage);
    return 2;
  }
  try {
    serve(given, ends);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

// A client of Ringpost, written from the .proto files. README.md in the folder above says how it is called.
#include <iostream>

#include "publisher.h"
#include "subscriber.h"

int main(int count, char** values) {
  const std::string mode = count > 1 ? values[1] : "";
  try {
    const Arguments arguments(count, values);
    if (mode == "publish") {
      Publisher publisher(arguments);
      Session::run(arguments.text("address"), [&](Session& session) { publisher.work(session); });
    } else if (mode == "subscribe" || mode == "work") {
      Subscriber subscriber(arguments);
      Session::run(arguments.text("address"), [&](Session& session) { subscriber.work(session); });
    } else {
      throw Problem("usage: client publish|subscribe|work --name value ...", true);
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
  return 0;
}

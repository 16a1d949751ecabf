// A device plug-in that embeds Python: the vendor's package registers the device.
//
// NEEDLE_PYTHON_MODULE names the module that is imported (torch first, from the same wheel as this
// program's LibTorch); whatever it registers as PrivateUse1 is the device. NEEDLE_PYTHON is the
// interpreter whose packages are taken (.../venv/bin/python), else that of PATH. The module may
// have
//   needle_bfloat16 = True    `auto` computes in bfloat16
// Ranks exchange such a device's tensors through host memory.
// The interpreter lives until the program ends; the program's own threads hold its lock only while
// they run Python.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include <Python.h>

#include "needle/train/device_plugin_api.h"

namespace {

std::string device_name;

// Owns a reference; throws what Python has raised.
class Object {
 public:
  explicit Object(PyObject* object) : object_(object) {
    if (object == nullptr) {
      throw std::runtime_error(raised());
    }
  }
  ~Object() { Py_XDECREF(object_); }
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  PyObject* get() const { return object_; }

  static std::string text(PyObject* object) {
    const Object string(PyObject_Str(object));
    const char* const bytes = PyUnicode_AsUTF8(string.get());
    return bytes != nullptr ? bytes : "";
  }

 private:
  // "ImportError: no module of that name"
  static std::string raised() {
    PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    const std::string name =
        type != nullptr ? reinterpret_cast<PyTypeObject*>(type)->tp_name : "Python failed";
    const std::string what = value != nullptr ? text(value) : "";
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return what.empty() ? name : name + ": " + what;
  }

  PyObject* object_;
};

void check(const PyStatus& status) {
  if (PyStatus_Exception(status) != 0) {
    throw std::runtime_error(std::string("Python does not start: ") +
                             (status.err_msg != nullptr ? status.err_msg : "unknown reason"));
  }
}

// SIGINT stays the program's. The executable decides where packages are looked for.
void start_python() {
  PyConfig config;
  PyConfig_InitPythonConfig(&config);
  config.install_signal_handlers = 0;
  try {
    if (const char* const executable = std::getenv("NEEDLE_PYTHON")) {
      check(PyConfig_SetBytesString(&config, &config.executable, executable));
    }
    check(PyConfig_SetBytesString(&config, &config.program_name, "python3"));
    check(Py_InitializeFromConfig(&config));
  } catch (...) {
    PyConfig_Clear(&config);
    throw;
  }
  PyConfig_Clear(&config);
}

const char* module_name() {
  const char* const name = std::getenv("NEEDLE_PYTHON_MODULE");
  if (name == nullptr || *name == '\0') {
    throw std::runtime_error(
        "NEEDLE_PYTHON_MODULE is not set; give it the Python module that registers the device");
  }
  return name;
}

// The name that PrivateUse1 has by now.
std::string registered_device(const std::string& module) {
  const Object bindings(PyImport_ImportModule("torch._C"));
  const Object name(PyObject_CallMethod(bindings.get(), "_get_privateuse1_backend_name", nullptr));
  const std::string device = Object::text(name.get());
  if (device == "privateuseone") {
    throw std::runtime_error("the module " + module + " registered no device under a name");
  }
  return device;
}

void fill(const NeedleDeviceHost& host, NeedleDevicePlugin& plugin) {
  const char* const name = module_name();
  start_python();
  const Object torch(PyImport_ImportModule("torch"));
  const Object version(PyObject_GetAttrString(torch.get(), "__version__"));
  const std::string found = Object::text(version.get());
  if (found.compare(0, found.find('+'), host.torch_version) != 0) {
    throw std::runtime_error("Python has torch " + found + ", this program LibTorch " +
                             host.torch_version + "; they must be the same");
  }
  const Object module(PyImport_ImportModule(name));
  device_name = registered_device(name);
  plugin = {.version = NEEDLE_DEVICE_PLUGIN_VERSION,
            .name = name,
            .device = device_name.c_str(),
            .bfloat16 = 0,
            .create_group = nullptr};
  if (PyObject_HasAttrString(module.get(), "needle_bfloat16") != 0) {
    const Object wanted(PyObject_GetAttrString(module.get(), "needle_bfloat16"));
    plugin.bfloat16 = PyObject_IsTrue(wanted.get());
  }
}

}  // namespace

extern "C" const NeedleDevicePlugin* needle_device_plugin(const NeedleDeviceHost* host, char* error,
                                                          size_t error_size) {
  static NeedleDevicePlugin plugin;
  try {
    fill(*host, plugin);
    PyEval_SaveThread();  // the program's threads take the lock when they need it
    return &plugin;
  } catch (const std::exception& failure) {
    std::snprintf(error, error_size, "%s", failure.what());
    return nullptr;
  }
}

/* Libraries that a program must refuse as device plug-ins: one without the entry point, and one of
 * another version of the interface. */
#include "needle/train/device_plugin_api.h"

#ifdef PLUGIN_VERSION
const NeedleDevicePlugin* needle_device_plugin(const NeedleDeviceHost* host, char* error,
                                               size_t error_size) {
  static const NeedleDevicePlugin plugin = {PLUGIN_VERSION, "of the future", "future", 0, 0};
  (void)host;
  (void)error;
  (void)error_size;
  return &plugin;
}
#else
int needle_no_plugin(void) { return 0; }
#endif

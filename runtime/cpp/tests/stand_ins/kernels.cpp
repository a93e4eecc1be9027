// A library that says it is of kernels, of the interface INTERFACE, if that is defined.
#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* adexport_kernels_version() {
  return "0.0";
}

#if defined(INTERFACE)
EXPORT int adexport_kernels_interface() {
  return INTERFACE;
}
#endif

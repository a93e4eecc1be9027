/* The header is C, too. */
#include <adexport/adexport.h>
#include <stdio.h>

int main(void) {
  puts(adexport_version());
  return 0;
}

/* Preloaded into a program: from the moment that the file CLOCK_JUMP_WHEN exists, the time of day is CLOCK_JUMP_S
 * seconds off. Makes CLOCK_JUMP_WHEN.seen when somebody has been told so. Steady clocks stay as they are. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t jump(void) {
  const char* const when = getenv("CLOCK_JUMP_WHEN");
  const char* const seconds = getenv("CLOCK_JUMP_S");
  if (when == NULL || seconds == NULL || access(when, F_OK) != 0) {
    return 0;
  }
  static int seen = 0;
  if (!seen) {
    char path[4096];
    snprintf(path, sizeof path, "%s.seen", when);
    const int file = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    seen = file >= 0 && close(file) == 0;
  }
  return atol(seconds);
}

int clock_gettime(clockid_t clock, struct timespec* now) {
  static int (*real)(clockid_t, struct timespec*) = NULL;
  if (real == NULL) {
    *(void**)&real = dlsym(RTLD_NEXT, "clock_gettime");
  }
  const int result = real(clock, now);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) {
    now->tv_sec += jump();
  }
  return result;
}

int gettimeofday(struct timeval* now, void* zone) {
  (void)zone;
  struct timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  now->tv_sec = time.tv_sec;
  now->tv_usec = time.tv_nsec / 1000;
  return 0;
}

time_t time(time_t* out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out != NULL) {
    *out = now.tv_sec;
  }
  return now.tv_sec;
}

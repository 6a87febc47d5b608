/* race: a program with a data race, which ThreadSanitizer must tell.
 *
 * A sanitizer that is not really there passes every test.  run.sh builds this
 * one in its tsan mode and counts it as passed only if it fails. */
#include <pthread.h>
#include <stddef.h>

static int shared;

static void *
add(void *unused)
{
    (void)unused;
    for (int i = 0; i < 1000; i++) {
        shared++;
    }
    return NULL;
}

int
main(void)
{
    pthread_t one, two;
    if (pthread_create(&one, NULL, add, NULL) != 0 || pthread_create(&two, NULL, add, NULL) != 0) {
        return 0;
    }
    pthread_join(one, NULL);
    pthread_join(two, NULL);
    return shared == 0;
}

// Package sandbox takes from the running process what its config does not
// need, so that whoever takes the process over gets little with it.
//
// Harden, called first, keeps memory out of core dumps and debuggers and gives
// up new privileges. Enter, called once everything is open, lets Landlock
// restrict all threads to the files and TCP ports that the config needs. What
// was granted then can never be widened: Covers tells whether another config
// gets by with it.
//
// Landlock is used as far as the kernel has it. Files need ABI 1 (Linux 5.13),
// TCP ports ABI 4 (6.7), signals and abstract unix sockets ABI 6 (6.12). It
// does not see UDP, nor connections to unix sockets that have a path.
package sandbox

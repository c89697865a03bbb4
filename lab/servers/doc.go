// Package servers holds tests that carry real, unmodified clients and servers
// through two sealane processes: PostgreSQL, Redis and nginx, psql under
// proxychains4 and curl. They need those programs, as Debian packages them,
// and skip where one is missing, except in CI.
//
// SEALANE_LAB=long gives the full sizes (1 GiB files, 20 s of pgbench);
// otherwise the tests take a few seconds.
package servers

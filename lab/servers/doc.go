// Package servers holds tests that carry real, unmodified clients and servers
// through two sealane processes: PostgreSQL, Redis and nginx, psql under
// proxychains4 and curl.
package servers

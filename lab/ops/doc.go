// Package ops operates real sidecars under load: it reloads, restarts, drains
// and starves them, floods them with strangers, and looks at what apps notice.
package ops

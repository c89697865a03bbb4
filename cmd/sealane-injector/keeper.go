package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// dataKey is where the Secret holds the authorities.
const dataKey = "authorities.pem"

// keeper keeps the authorities, the caBundle and this replica's certificate.
type keeper struct {
	options
	api *api
	log zerolog.Logger
	now func() time.Time

	issuer  authority // of serving; used by run alone
	serving atomic.Pointer[tls.Certificate]
}

// certificate is for tls.Config.
func (k *keeper) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := k.serving.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("no certificate yet")
}

// run reconciles until ctx ends, several times within each overlap.
func (k *keeper) run(ctx context.Context) {
	period := min(overlap(k.rotate)/5, 30*time.Second)
	for {
		wait := period
		if err := k.reconcile(ctx); err != nil && ctx.Err() == nil {
			k.log.Error().Err(err).Msg("certificates are not up to date, will try again")
			wait = min(period, time.Second)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// reconcile brings the Secret, the webhook configuration and the serving
// certificate to what they must be now, in this order: nothing is issued by an
// authority that the API server was not told to trust.
func (k *keeper) reconcile(ctx context.Context) error {
	list, err := k.authorities(ctx)
	if err != nil {
		return err
	}
	if err := k.trust(ctx, bundle(list)); err != nil {
		return err
	}
	issuer := issuing(list, k.now(), k.rotate)
	if k.issuer.cert != nil && k.issuer.cert.Equal(issuer.cert) {
		return nil
	}
	cert, err := issuer.serving(k.service + "." + k.namespace + ".svc")
	if err != nil {
		return err
	}
	k.issuer = issuer
	k.serving.Store(cert)
	k.log.Info().Time("until", cert.Leaf.NotAfter).Str("authority", issuer.cert.SerialNumber.Text(16)).Msg("new serving certificate")
	return nil
}

// authorities reads them from the Secret and replaces those that are due. When
// another replica does so at the same time, one of them gets a conflict and
// reads again.
func (k *keeper) authorities(ctx context.Context) ([]authority, error) {
	path := "/api/v1/namespaces/" + k.namespace + "/secrets/" + k.secret
	for {
		var secret struct {
			Metadata struct {
				ResourceVersion string `json:"resourceVersion"`
			} `json:"metadata"`
			Data map[string][]byte `json:"data"`
		}
		if err := k.api.get(ctx, path, &secret); err != nil {
			return nil, err
		}
		have := secret.Data[dataKey]
		list, err := unmarshal(have)
		if err != nil {
			return nil, fmt.Errorf("secret %s: %s: %w (remove the key to start over)", k.secret, dataKey, err)
		}
		if list, err = rotated(list, k.now(), k.rotate); err != nil {
			return nil, err
		}
		want, err := marshal(list)
		if err != nil || bytes.Equal(have, want) {
			return list, err
		}
		err = k.api.patch(ctx, path, "application/merge-patch+json", map[string]any{
			"metadata": map[string]any{"resourceVersion": secret.Metadata.ResourceVersion},
			"data":     map[string]any{dataKey: want},
		})
		var failed *statusError
		if errors.As(err, &failed) && failed.code == http.StatusConflict {
			continue
		}
		if err == nil {
			k.log.Info().Int("authorities", len(list)).Msg("certificate authorities changed")
		}
		return list, err
	}
}

// trust makes the bundle the caBundle of every webhook of the configuration.
func (k *keeper) trust(ctx context.Context, bundle []byte) error {
	path := "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/" + k.webhook
	var have struct {
		Webhooks []struct {
			Name         string `json:"name"`
			ClientConfig struct {
				CABundle []byte `json:"caBundle"`
			} `json:"clientConfig"`
		} `json:"webhooks"`
	}
	if err := k.api.get(ctx, path, &have); err != nil {
		return err
	}
	var stale []any
	for _, w := range have.Webhooks {
		if !bytes.Equal(w.ClientConfig.CABundle, bundle) {
			stale = append(stale, map[string]any{"name": w.Name, "clientConfig": map[string]any{"caBundle": bundle}})
		}
	}
	if len(stale) == 0 {
		return nil
	}
	// A strategic merge patch finds webhooks by their name.
	err := k.api.patch(ctx, path, "application/strategic-merge-patch+json", map[string]any{"webhooks": stale})
	if err == nil {
		k.log.Info().Int("webhooks", len(stale)).Msg("caBundle written")
	}
	return err
}

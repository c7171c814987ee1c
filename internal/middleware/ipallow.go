package middleware

type ipAllowConfig struct {
	Clients []string `json:"clients" jsonschema:"required" jsonschema_description:"Addresses and CIDR ranges that may pass. The client is the peer, or what trusted proxies say."`
}

var _ = register(ipAllowKind())

func ipAllowKind() Kind {
	return newKind("ipAllow",
		"Lets only the listed clients pass; others, and those without an address, are answered with 403.",
		func(c *ipAllowConfig, _ Env, ps *problems) *Head {
			list, no := newIPList(c.Clients, ps), refusal()
			return &Head{Request: func(x *Exchange) *Answer {
				if x.Client.IsValid() && list.contains(x.Client) {
					return nil
				}
				return no
			}}
		})
}

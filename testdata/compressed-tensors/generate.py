import json, os, sys, torch, math
from transformers import LlamaConfig, LlamaForCausalLM
from safetensors.torch import save_file
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
OUT=sys.argv[1]
torch.manual_seed(5)
def model():
    c=LlamaConfig(vocab_size=96,hidden_size=64,intermediate_size=128,num_hidden_layers=2,num_attention_heads=4,num_key_value_heads=2,head_dim=16,max_position_embeddings=128,tie_word_embeddings=False)
    m=LlamaForCausalLM(c).float().eval()
    for p in m.parameters():
        torch.nn.init.normal_(p, 0, 0.12) if p.dim()>1 else torch.nn.init.uniform_(p,0.5,1.5)
    return c,m
def quant(w,bits,sym,group):
    n,k=w.shape; g=w.reshape(n,k//group,group)
    lo,hi=-(1<<(bits-1)),(1<<(bits-1))-1
    if sym:
        s=g.abs().amax(-1)/hi*0.97; z=torch.zeros_like(s)
    else:
        mn=g.amin(-1).clamp(max=0); mx=g.amax(-1).clamp(min=0); s=(mx-mn)/(hi-lo); z=(lo-mn/s).round().clamp(lo,hi)
    s=s.half().float()
    q=(g/s[...,None]+z[...,None]).round().clamp(lo,hi)
    d=((q-z[...,None])*s[...,None]).reshape(n,k)
    return q.reshape(n,k).to(torch.int8),s.half(),z.to(torch.int8),d
def args(bits,sym,strategy,group,**k):
    return dict(num_bits=bits,type="int",symmetric=sym,group_size=group,strategy=strategy,block_structure=None,dynamic=False,actorder=None,scale_dtype=None,zp_dtype=None,observer="minmax",observer_kwargs={},**k)
def save(dir,c,tensors,qc,expected,deq):
    os.makedirs(dir,exist_ok=True)
    d=json.loads(c.to_json_string()); d["architectures"]=["LlamaForCausalLM"]; d["quantization_config"]=qc; d["dtype"]="float16"
    json.dump(d,open(dir+"/config.json","w"),indent=1,sort_keys=True)
    save_file(tensors,dir+"/model.safetensors",metadata={"format":"pt"})
    save_file(deq,dir+"/dequantized.safetensors")
    json.dump(expected,open(dir+"/expected.json","w"))
def linears(m): return [(n,x) for n,x in m.named_modules() if isinstance(x,torch.nn.Linear)]
ids=[(7*i*i+3*i+1)%96 for i in range(24)]
# 1: mixed packed
c,m=model(); t={}; deq={}
for n,x in linears(m):
    if n=="lm_head": continue
    if n.endswith("down_proj"): bits,sym,group=3,True,x.weight.shape[1]
    elif n.endswith("v_proj"): bits,sym,group=8,True,32
    elif n.endswith("up_proj"): bits,sym,group=3,False,32
    else: bits,sym,group=4,False,32
    q,s,z,d=quant(x.weight.data,bits,sym,group)
    x.weight.data=d; deq[n+".weight"]=d.clone()
    t[n+".weight_packed"]=pack_to_int32(q,bits); t[n+".weight_scale"]=s; t[n+".weight_shape"]=torch.tensor(x.weight.shape)
    if not sym: t[n+".weight_zero_point"]=pack_to_int32(z,bits,packed_dim=0).contiguous()
for n,p in m.state_dict().items():
    if n not in deq: p.copy_(p.half().float()); t[n]=p.half()
names=lambda e:[n for n,_ in linears(m) if n.endswith(e)]
act=None
qc=dict(quant_method="compressed-tensors",format="pack-quantized",quantization_status="compressed",ignore=["lm_head"],kv_cache_scheme=None,global_compression_ratio=None,sparsity_config={},transform_config={},version="0.20.0",
 config_groups={"group_0":dict(targets=["Linear"],weights=args(4,False,"group",32),input_activations=None,output_activations=None,format="pack-quantized"),
 "group_1":dict(targets=names("down_proj"),weights=args(3,True,"channel",None),input_activations=None,output_activations=None,format="pack-quantized"),
 "group_2":dict(targets=names("v_proj"),weights=args(8,True,"group",32),input_activations=None,output_activations=None,format=None),
 "group_3":dict(targets=names("up_proj"),weights=args(3,False,"group",32),input_activations=None,output_activations=None,format=None)})
with torch.no_grad(): lg=m(torch.tensor([ids])).logits[0]
save(OUT+"/packed",c,t,qc,dict(ids=ids,logits=[[float(f"{v:.6g}") for v in r] for r in lg.tolist()]),deq)
# 2: W8A8 static
c,m=model(); t={}; deq={}; scales={}
hooks=[]
def obs(n):
    def f(mod,inp): scales[n]=inp[0].abs().max().item()/127*0.8
    return f
for n,x in linears(m):
    if n!="lm_head": hooks.append(x.register_forward_pre_hook(obs(n)))
with torch.no_grad(): m(torch.tensor([ids]))
for h in hooks: h.remove()
for n,x in linears(m):
    if n=="lm_head": continue
    q,s,z,d=quant(x.weight.data,8,True,x.weight.shape[1])
    x.weight.data=d; deq[n+".weight"]=d.clone()
    t[n+".weight"]=q; t[n+".weight_scale"]=s; t[n+".input_scale"]=torch.tensor([scales[n]])
    def h(mod,inp,s=scales[n]): return ((inp[0]/s).round().clamp(-127,127)*s,)
    x.register_forward_pre_hook(h)
for n,p in m.state_dict().items():
    if n not in deq: p.copy_(p.half().float()); t[n]=p.half()
qc=dict(quant_method="compressed-tensors",format="int-quantized",quantization_status="compressed",ignore=["lm_head"],kv_cache_scheme=None,
 config_groups={"group_0":dict(targets=["Linear"],weights=args(8,True,"channel",None),input_activations=args(8,True,"tensor",None),output_activations=None)})
with torch.no_grad(): lg=m(torch.tensor([ids])).logits[0]
save(OUT+"/w8a8-static",c,t,qc,dict(ids=ids,logits=[[float(f"{v:.6g}") for v in r] for r in lg.tolist()]),deq)

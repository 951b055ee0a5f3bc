"""grpcio against the gRPC API, on the port of HTTP. Messages come from the server's own reflection, so nothing is generated."""

import time
from urllib.parse import urlparse

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE = "edgelm.v1.EdgeLM"


class Api:
    """Calls by name, messages as keyword arguments."""

    def __init__(self, url):
        self.channel = grpc.insecure_channel(urlparse(url).netloc)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.service = DescriptorPool(self.database).FindServiceByName(SERVICE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def __call__(self, name, message, **options):
        method = self.service.methods_by_name[name]
        make = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        call = make(
            f"/{SERVICE}/{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return call(GetMessageClass(method.input_type)(**message), **options)


def refusal(call):
    """The status of a call that must fail, and its code and field in the server's words."""
    try:
        answer = call()
        list(answer) if hasattr(answer, "__next__") else None
    except grpc.RpcError as error:
        metadata = dict(error.trailing_metadata())
        return error.code(), metadata.get("edgelm-code"), metadata.get("edgelm-param")
    raise AssertionError("the call was not refused")


def check_reflection(url, model):
    with Api(url) as api:
        assert SERVICE in api.database.get_services()
        assert "grpc.health.v1.Health" in api.database.get_services()


def check_health(url, model):
    with Api(url) as api:
        stub = health_pb2_grpc.HealthStub(api.channel)
        for service in ["", SERVICE]:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watched = stub.Watch(health_pb2.HealthCheckRequest(service="none"))
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watched.cancel()
        try:
            stub.Check(health_pb2.HealthCheckRequest(service="none"))
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND


def check_models(url, model):
    with Api(url) as api:
        assert model in [entry.id for entry in api("ListModels", {}).models]


def check_generate(url, model):
    with Api(url) as api:
        parameters = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, "logprobs": 2, "n": 2}
        message = {"model": model, "prompt": "Once upon", "parameters": parameters}
        whole = api("Generate", message)
        assert [choice.index for choice in whole.choices] == [0, 1]
        assert whole.usage.completion_tokens == 16
        assert all(len(choice.logprobs) == 8 for choice in whole.choices)
        chunks = list(api("GenerateStream", message))
        assert chunks[-1].WhichOneof("event") == "usage"
        for choice in whole.choices:
            pieces = [chunk.piece for chunk in chunks[:-1] if chunk.index == choice.index]
            assert "".join(piece.text for piece in pieces) == choice.text
        ends = [chunk.finish_reason for chunk in chunks if chunk.WhichOneof("event") == "finish_reason"]
        assert ends == [2, 2], ends


def check_chat_with_a_form(url, model):
    with Api(url) as api:
        messages = [{"role": "user", "content": "Yes or no?"}]
        parameters = {"max_tokens": 8, "structured_outputs": {"choice": {"texts": ["yes", "no"]}}}
        answer = api("Chat", {"model": model, "messages": messages, "parameters": parameters})
        assert answer.choices[0].text in ["yes", "no"]
        text = "".join(
            chunk.piece.text
            for chunk in api("ChatStream", {"model": model, "messages": messages, "parameters": parameters})
        )
        assert text in ["yes", "no"]


def check_embed_and_tokens(url, model):
    with Api(url) as api:
        vectors = api("Embed", {"model": model, "input": ["a gull", "the harbour"]})
        assert len(vectors.embeddings) == 2 and vectors.prompt_tokens > 0
        for vector in vectors.embeddings:
            assert abs(sum(x * x for x in vector.values) - 1) < 1e-3
        tokens = api("Tokenize", {"model": model, "prompt": "a gull", "add_special_tokens": False}).tokens
        assert api("Detokenize", {"model": model, "tokens": tokens}).text == "a gull"


def check_refusals(url, model):
    with Api(url) as api:
        invalid, not_found = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
        for message, wanted in [
            ({"model": model}, (invalid, "missing_required_parameter", "prompt")),
            ({"prompt": "a"}, (invalid, "missing_required_parameter", "model")),
            ({"model": "none", "prompt": "a"}, (not_found, "model_not_found", "model")),
            ({"model": model, "prompt": "a", "parameters": {"temperature": 3}}, (invalid, "invalid_value", "temperature")),
            ({"model": model, "prompt": "a", "parameters": {"top_p": float("nan")}}, (invalid, "invalid_value", "top_p")),
        ]:
            for name in ["Generate", "GenerateStream"]:
                got = refusal(lambda: api(name, message))
                assert got == wanted, (got, wanted)


def check_deadline_and_cancel(url, model):
    with Api(url) as api:
        parameters = {"max_tokens": 400, "ignore_eos": True}
        message = {"model": model, "prompt": "Once", "parameters": parameters}
        begin = time.monotonic()
        code, _, _ = refusal(lambda: api("Generate", message, timeout=0.05))
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED and time.monotonic() - begin < 5
        stream = api("GenerateStream", message)
        next(stream)
        stream.cancel()
        try:
            list(stream)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.CANCELLED

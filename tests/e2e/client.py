"""Streams one answer: client.py HOST:PORT PROMPT"""
import sys

import grpc
from proto import inference_pb2, inference_pb2_grpc, types_pb2


def main(router, prompt):
    request = inference_pb2.GenerateRequest(
        prompt=prompt,
        max_tokens=60,
        sampling=types_pb2.SamplingOptions(temperature=0.7, seed=7),
    )
    with grpc.insecure_channel(router) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        for response in stub.Generate(request, timeout=60):
            event = response.WhichOneof("event")
            if event == "delta":
                print(response.delta.text, end="", flush=True)
            elif event == "finished":
                finished = response.finished
                reason = types_pb2.FinishReason.Name(finished.reason)
                print(f"\n[{reason}, {finished.usage.generated_tokens} tokens, "
                      f"first after {finished.timings.first_token_ms:.0f} ms]")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")

/* Runs a SavedModel through TensorFlow's C API, without Python: what a server does.
 *
 * serve FOLDER INPUT OUTPUT... -- FILE...
 *
 * INPUT and OUTPUT are names of operations as the signature gives them (name:index). The files are one batch
 * of encoded images. Prints for each output its name, its dimensions and its values, one to a line.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

#define MOST 64

static void check(TF_Status *status) {
  if (TF_GetCode(status) == TF_OK) return;
  fprintf(stderr, "%s\n", TF_Message(status));
  exit(1);
}

static TF_Output find(TF_Graph *graph, char *name) {
  char *colon = strrchr(name, ':');
  TF_Output found = {NULL, colon ? atoi(colon + 1) : 0};
  if (colon) *colon = 0;
  found.oper = TF_GraphOperationByName(graph, name);
  if (found.oper) return found;
  fprintf(stderr, "no operation %s\n", name);
  exit(1);
}

static void put_file(TF_TString *string, const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) exit(2);
  fseek(file, 0, SEEK_END);
  long size = ftell(file);
  rewind(file);
  char *bytes = malloc(size + 1);
  if (fread(bytes, 1, size, file) != (size_t)size) exit(2);
  fclose(file);
  TF_StringInit(string);
  TF_StringCopy(string, bytes, size);
  free(bytes);
}

static void print(const char *name, TF_Tensor *tensor) {
  long count = 1;
  printf("%s", name);
  for (int axis = 0; axis < TF_NumDims(tensor); axis++) {
    count *= TF_Dim(tensor, axis);
    printf(" %ld", (long)TF_Dim(tensor, axis));
  }
  printf("\n");
  void *data = TF_TensorData(tensor);
  for (long i = 0; i < count; i++) switch (TF_TensorType(tensor)) {
      case TF_FLOAT: printf("%.9g\n", ((float *)data)[i]); break;
      case TF_INT32: printf("%d\n", ((int *)data)[i]); break;
      case TF_INT64: printf("%lld\n", ((long long *)data)[i]); break;
      default: {
        TF_TString *string = (TF_TString *)data + i;
        printf("%.*s\n", (int)TF_StringGetSize(string), TF_StringGetDataPointer(string));
      }
    }
}

int main(int argc, char **argv) {
  const char *tags[] = {"serve"}, *names[MOST];
  TF_Output input, outputs[MOST];
  TF_Tensor *answers[MOST] = {NULL};
  int asked = 0, at = 3;
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  TF_Session *session =
      TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  check(status);
  input = find(graph, argv[2]);
  for (; at < argc && strcmp(argv[at], "--") && asked < MOST; at++, asked++) {
    names[asked] = strdup(argv[at]);
    outputs[asked] = find(graph, argv[at]);
  }
  int64_t batch = argc - at - 1;
  TF_Tensor *files = TF_AllocateTensor(TF_STRING, &batch, 1, batch * sizeof(TF_TString));
  for (int64_t i = 0; i < batch; i++) put_file((TF_TString *)TF_TensorData(files) + i, argv[at + 1 + i]);
  TF_SessionRun(session, NULL, &input, &files, 1, outputs, answers, asked, NULL, 0, NULL, status);
  check(status);
  for (int i = 0; i < asked; i++) print(names[i], answers[i]);
  TF_CloseSession(session, status);
  return 0;
}
